// What the host and the kernels share: the structs that a step leaves in device memory and the constants that both
// sides compute with. src/backend/cuda/abi.rs is made from this file (`cargo xtask abi`).
#pragma once
#include <stdint.h>

// Tokens per page of the KV cache.
#define WEFT_PAGE 16
// Keys per part of a split attention: a function of absolute positions alone, so that a row's result does not depend
// on what else is in the launch.
#define WEFT_ATTENTION_SPLIT 256
// Rows per tile of the attention; the rows of a tile belong to one sequence.
#define WEFT_ATTENTION_ROWS 64
// Scratch slots (tree drafts) of a sequence; a row's ancestors among them are one bit each.
#define WEFT_SCRATCH 128
// "No row", "no such thing".
#define WEFT_NONE 0xffffffffu

// Which list of slots a row's key and value go to.
enum WeftSlot { WEFT_SLOT_PREFIX = 0, WEFT_SLOT_GRID = 1, WEFT_SLOT_SCRATCH = 2, WEFT_SLOT_OPEN = 3 };

// How a token is drawn. Numbers are drawn as src/rng.rs says.
enum WeftRule {
  WEFT_RULE_COUPLED = 0,       // argmax(log p + noise of the position)
  WEFT_RULE_DRAFT = 1,         // argmax(log q + noise of its own); q is kept
  WEFT_RULE_AUTO_CORRECT = 2,  // keep what passes the image's test, else replace it; p is kept as q
  WEFT_RULE_CHILDREN = 3,      // `count` of the largest log q + noise, to the places from the draw's; q is kept at the first
  WEFT_RULE_LIKELIEST = 4,     // `count` of the largest log p, to the places from the draw's
  WEFT_RULE_FORESEE = 5,       // `count` of the largest log p + noise of the position, to the host alone
  WEFT_RULE_SIBLINGS = 6,      // judge the tokens at the places from `first`, drawn as children
  WEFT_RULE_CHOSEN = 7,        // the same, each with a law that has it alone
};

// When a token t that was drawn from q passes for one that was drawn from p (src/backend/step.rs).
enum WeftTest {
  WEFT_TEST_TOKEN = 0,         // with probability min(1, p(t)/q(t))
  WEFT_TEST_GROUPED = 1,       // the same of its group's masses: `size` tokens, p within `bound`, vectors within `distance`
  WEFT_TEST_POOLED_MASS = 2,   // the same with the mass of nearest others, of `size`, added to p(t): `bound` at most
  WEFT_TEST_POOLED_RATIO = 3,  // the same, (bound - 1) p(t) at most
  WEFT_TEST_THRESHOLD = 4,     // if p(t) and the mass of its `size` nearest others reach `bound`
};

// How verdicts are linked in chains: what follows one that failed, or one that was not judged, is not judged.
enum WeftLinks {
  WEFT_FOLLOWS = 1,   // the draw before it in the list
  WEFT_FOLLOWED = 2,  // by the draw after it
};

// What becomes of the numbers of a position, and what stands before the densities that drafts are judged by
// (src/backend/gaussian.rs).
enum WeftFate { WEFT_FATE_DRAW = 0, WEFT_FATE_JUDGE = 1 };
enum WeftSigma { WEFT_SIGMA_PAPER = 0, WEFT_SIGMA_CODE = 1, WEFT_SIGMA_ONE = 2 };

// Number of things in the lists of a step, in device memory: a captured graph reads its lengths from here.
typedef struct WeftCounts {
  uint32_t rows;
  uint32_t sequences;
  uint32_t tiles;
  uint32_t sources;
  uint32_t predictions;
  uint32_t drafts;
  uint32_t verdicts;
  uint32_t copies;
  uint32_t puts;
  uint32_t draft_children;  // drafts of children of draft trees
  uint32_t children;        // verdicts that are such
  uint32_t siblings;        // verdicts of siblings of draft trees
  uint32_t goals;
  uint32_t chained;         // verdicts that have links
} WeftCounts;

// A row (token) of the pass.
typedef struct WeftRow {
  uint32_t sequence;
  uint32_t kind;  // WeftSlot
  uint32_t slot;  // index among the slots of that kind; of an open row among those of the prefix
  uint32_t at;    // raster position whose coordinates and token a scratch slot has; equal to slot for the grid; of an open
                  // row its position, WEFT_NONE if it has none
  uint32_t ancestors[WEFT_SCRATCH / 32];  // visible scratch slots, itself included
} WeftRow;

// A branch of an image.
typedef struct WeftSequence {
  uint32_t image;
  uint32_t prefix_len;
  uint32_t width;
  uint32_t height;
  uint32_t prefix_pages;   // first of its prefix pages in WeftStep.pages
  uint32_t grid_pages;     // first of its grid pages
  uint32_t scratch_pages;  // first of its scratch pages
  uint32_t frontier;       // first of its `height` frontiers in WeftStep.frontiers
} WeftSequence;

// Up to WEFT_ATTENTION_ROWS adjacent rows of one sequence.
typedef struct WeftTile {
  uint32_t sequence;
  uint32_t first;
  uint32_t rows;
  uint32_t end;      // one past the last grid slot that any row of the tile may see (its own slot, the frontiers above)
  uint32_t prefix;   // one past the last prefix slot that any row may see
  uint32_t scratch;  // one past the last scratch slot that any row may see
} WeftTile;

// An input row of the spatial heads.
typedef struct WeftSource {
  uint32_t state;  // row of the kept states
  uint32_t token;  // index into the canvas
} WeftSource;

// A token that the host chose.
typedef struct WeftPut {
  uint32_t image;
  uint32_t position;
  uint32_t token;
} WeftPut;

// A token to draw. Row numbers are rows of the logits.
typedef struct WeftDraw {
  uint32_t image;
  uint32_t position;
  uint32_t rule;              // WeftRule
  uint32_t links;             // WeftLinks
  uint32_t first;             // place of the first sibling; of rules that choose, of their first in the list of what was chosen
  uint32_t count;             // children or siblings
  uint32_t round;             // of the random numbers
  float slack;                // nats by which the best must be better than the token that is there, in a coupled draw
  float penalty;              // nats less of that for each nat by which the best is more probable
  uint32_t conditional[2];    // the second is WEFT_NONE unless the mean of two distributions is drawn from
  uint32_t unconditional[2];  // WEFT_NONE without guidance
} WeftDraw;

// A position whose numbers are denoised. Row numbers are indices of predictions.
typedef struct WeftGoal {
  uint32_t image;
  uint32_t position;
  float guidance;
  uint32_t conditional;
  uint32_t unconditional;  // WEFT_NONE without guidance
  uint32_t fate;           // WeftFate
} WeftGoal;

// A step of denoising: `Denoising` of src/backend/gaussian.rs.
typedef struct WeftDenoising {
  uint32_t level;
  float signal, noise;
  float from_x0, from_xt;
  float low, high;
} WeftDenoising;

// How the numbers of goals are settled.
typedef struct WeftSettlement {
  double temper;
  uint32_t sigma;  // WeftSigma
  uint32_t noise;  // of the last step: whether it is added to what is drawn
} WeftSettlement;

// What a drawn token replaced.
typedef struct WeftDrawn {
  uint32_t before;
  uint32_t after;
} WeftDrawn;

// A token that was chosen, and the logarithm of its probability; -inf where there are no more.
typedef struct WeftChosen {
  uint32_t token;
  float log_probability;
} WeftChosen;

// What a verdict of a chain found: whether its token passes, what replaces it if it does not, and what replaces it if it is
// not judged.
typedef struct WeftJudged {
  uint32_t kept;
  uint32_t corrected;
  uint32_t fresh;
} WeftJudged;

// Settings of one image: its random stream and how its logits become a distribution (src/sampling.rs).
typedef struct WeftImage {
  uint32_t seed_low;
  uint32_t seed_high;
  uint32_t stream;
  float cfg;
  float temperature;
  uint32_t top_k;
  float top_p;
  uint32_t test;  // WeftTest
  uint32_t size;
  float bound;
  float distance;
} WeftImage;

// A vector for each token, and for each the nearest others; null without.
typedef struct WeftCodebook {
  const float *vectors;        // [vocab, dim]
  const uint32_t *neighbours;  // [vocab, each]
  uint32_t dim;
  uint32_t each;
} WeftCodebook;

// Copies a row of the logits to another.
typedef struct WeftCopy {
  uint32_t from;
  uint32_t to;
} WeftCopy;

// The step's lists in device memory, passed to kernels by value; the addresses never change.
typedef struct WeftStep {
  const WeftCounts *counts;
  const WeftRow *rows;
  const WeftSequence *sequences;
  const WeftTile *tiles;
  const uint32_t *pages;
  const uint32_t *frontiers;
  const WeftSource *sources;
  const uint32_t *groups;       // sources of head h are groups[h] .. groups[h + 1]
  const uint32_t *predictions;  // rows of the pass whose distributions are wanted
  const WeftDraw *drafts;
  const WeftDraw *verdicts;
  const WeftImage *images;
  const WeftCopy *copies;
  const WeftPut *puts;
  const uint32_t *inputs;  // for each row of the pass the row of a table that is its input, if an op asks
  const WeftGoal *goals;
} WeftStep;

// Rows of a tensor: a fixed number, or one that a step holds in device memory.
typedef struct WeftRows {
  const uint32_t *count;  // null: `max` rows
  uint32_t max;           // of the bucket; grids are sized by it
} WeftRows;

// Where an op writes its rows.
typedef struct WeftOut {
  void *data;
  uint32_t room;  // 0: [row][cols] f32. Else an operand of products, with room for so many rows: see kernels/operand.cuh
} WeftOut;
