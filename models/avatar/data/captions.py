"""Varied English captions of avatars, and the attributes each caption names."""

import json
import re

from avatars import ATTRIBUTES, LONG_STYLES

# attribute -> class -> phrases. In hair styles {c} is the hair colour or nothing.
HAIR_STYLE = {
    "long": ["long {c} hair", "{c} long hair", "long flowing {c} hair", "shoulder length {c} hair"],
    "extraLong": ["very long {c} hair", "extra long {c} hair", "really long straight {c} hair"],
    "sideShave": ["side shaved {c} hair", "{c} hair shaved on one side", "a {c} side shave"],
    "shortCombover": ["short {c} hair", "a short {c} comb over", "short neat {c} hair"],
    "shortComboverChops": ["short {c} hair with sideburns", "short {c} hair and sideburns", "{c} sideburns"],
    "curlyHighTop": ["a curly {c} high top", "a {c} high top", "high top {c} curls"],
    "bobCut": ["a {c} bob", "a {c} bob cut", "bobbed {c} hair"],
    "bobBangs": ["a {c} bob with bangs", "{c} hair with bangs", "{c} bangs", "a {c} fringe"],
    "curly": ["curly {c} hair", "big {c} curls", "a {c} afro", "{c} curly hair"],
    "pigtails": ["{c} pigtails", "{c} hair in pigtails"],
    "curlyBun": ["a curly {c} bun", "curly {c} hair in a bun"],
    "straightBun": ["a {c} bun", "{c} hair in a bun", "a straight {c} bun", "{c} hair tied up"],
    "bunUndercut": ["a {c} undercut with a bun", "a {c} man bun", "a {c} top knot"],
    "buzzcut": ["a {c} buzz cut", "buzzed {c} hair", "very short {c} hair"],
    "fade": ["a {c} fade", "a {c} fade haircut"],
    "mohawk": ["a {c} mohawk", "a {c} mohawk haircut"],
    "balding": ["balding {c} hair", "thinning {c} hair", "a receding {c} hairline"],
    "bald": ["a bald head", "no hair", "a shaved head"],
    "cap": ["a cap", "an orange cap", "a baseball cap"],
    "beanie": ["a beanie", "a red beanie", "a knit hat", "a red hat"],
}
HAIR_COLOR = {"black": ["black", "dark"], "brown": ["brown", "brunette"], "blond": ["blond", "blonde", "golden", "yellow"],
              "red": ["red", "ginger", "orange"], "gray": ["gray", "grey", "silver", "white"], "pink": ["pink"], "blue": ["blue"]}
SKIN = {"light": ["light", "pale", "fair", "white"], "tan": ["tan", "tanned", "olive"], "brown": ["brown", "medium brown"],
        "dark": ["dark", "black", "dark brown", "deep"]}
EYES = {"open": ["open eyes", "round eyes", "wide open eyes"], "sleep": ["closed eyes", "sleepy eyes", "eyes closed"],
        "wink": ["a wink", "one eye winking"], "glasses": ["glasses", "eyeglasses", "spectacles"],
        "happy": ["happy eyes", "cheerful eyes", "smiling eyes"], "sunglasses": ["sunglasses", "dark glasses", "shades"]}
EYES_ADJ = {"sleep": ["sleeping", "sleepy"], "wink": ["winking"]}
MOUTH = {"smile": ["a smile", "a gentle smile", "a friendly smile"], "frown": ["a frown", "a sad face", "a sad mouth"],
         "surprise": ["an open mouth", "a surprised look", "a surprised face"], "pacifier": ["a pacifier", "a blue pacifier", "a dummy"],
         "bigSmile": ["a big smile", "a grin", "a wide grin", "a toothy smile"], "smirk": ["a smirk", "a crooked smile", "a sly smile"],
         "lips": ["red lips", "pink lips", "lipstick", "full lips"]}
MOUTH_ADJ = {"smile": ["smiling", "happy"], "frown": ["sad", "frowning", "unhappy"], "surprise": ["surprised", "shocked", "amazed"],
             "bigSmile": ["grinning", "laughing", "very happy"], "smirk": ["smirking"]}
NOSE = {"mediumRound": ["a round nose", "a medium nose"], "smallRound": ["a small nose", "a little nose", "a button nose"],
        "wrinkles": ["wrinkles", "a wrinkled face", "smile lines"]}
FACIAL_HAIR = {"none": ["no beard", "a clean shaven face"], "beardMustache": ["a beard", "a full beard", "a beard and mustache"],
               "pyramid": ["a mustache", "a moustache", "a thick mustache"], "walrus": ["a walrus mustache", "a bushy mustache", "a big mustache"],
               "goatee": ["a goatee", "a circle beard"], "shadow": ["stubble", "a five o'clock shadow", "a short beard"],
               "soulPatch": ["a soul patch", "a chin patch", "a small chin beard"]}
FACIAL_ADJ = {"beardMustache": ["bearded"], "shadow": ["unshaven"]}
CLOTHING = {"squared": ["sweater", "jumper", "pullover"], "rounded": ["t-shirt", "tee", "tshirt"],
            "small": ["tank top", "wrap top", "vest"], "checkered": ["checkered shirt", "plaid shirt", "checked shirt"]}
GARMENT = ["shirt", "top", "shirt", "clothes", "outfit"]  # names the colour only
COLOR = {"red": ["red", "crimson"], "orange": ["orange"], "yellow": ["yellow"], "green": ["green"], "blue": ["blue"],
         "purple": ["purple", "violet"], "pink": ["pink"], "gray": ["gray", "grey"], "white": ["white"], "black": ["black"]}
WOMAN, MAN = ["woman", "woman", "lady", "girl", "female"], ["man", "man", "guy", "boy", "male", "gentleman"]
NEUTRAL = ["person", "avatar", "character", "face", "human", "someone", "figure"]
MEDIUM = ["portrait", "photo", "picture", "avatar", "image", "drawing", "illustration", "cartoon", "headshot", "profile picture"]
AGE = ["young", "", "", "", "", "", "", "", ""]
# how often a caption names each attribute, before the caption's own brevity
RATE = {"background": .85, "hair_style": .85, "hair_color": .8, "skin": .55, "eyes": .65, "mouth": .75, "nose": .22,
        "facial_hair": .6, "clothing": .55, "clothing_color": .85}


def article(text):
    """'a' becomes 'an' before a vowel sound."""
    return re.sub(r"\ba (?=[aeiou])", "an ", re.sub(r" +", " ", text)).strip()


def caption(rng, a, full=.35):
    """a: {attribute: label or -1}; full: share of the captions that leave out little. Returns (text, {named attribute: label})."""
    pick = lambda words: words[rng.integers(len(words))]
    label = {k: ATTRIBUTES[k][i] if i >= 0 else None for k, i in a.items()}
    brevity = 1.15 if rng.random() < full else rng.uniform(.15, 1)
    named = {k: label[k] is not None and rng.random() < RATE[k] * brevity for k in ATTRIBUTES}
    if label["facial_hair"] == "none":
        named["facial_hair"] &= rng.random() < .15
    if label["eyes"] == "open":
        named["eyes"] &= rng.random() < .5
    used = {k: a[k] for k, n in named.items() if n}
    adjectives, traits, wear = [], [], []
    if named["skin"] and rng.random() < .4:
        adjectives.append(pick([w for w in SKIN[label["skin"]] if " " not in w]) + " skinned")
        named["skin"] = False
    for k, words in (("mouth", MOUTH_ADJ), ("eyes", EYES_ADJ), ("facial_hair", FACIAL_ADJ)):
        if named[k] and label[k] in words and rng.random() < .6 and len(adjectives) < 2:
            adjectives.append(pick(words[label[k]]))
            named[k] = False
    style, headwear = label["hair_style"], label["hair_style"] in ("cap", "beanie")
    if named["hair_style"] and style == "bald" and rng.random() < .5 and len(adjectives) < 2:
        adjectives.append("bald")
        named["hair_style"] = False
    tint = pick(HAIR_COLOR[label["hair_color"]]) if named["hair_color"] else ""
    if named["hair_style"]:
        (wear if headwear and rng.random() < .7 else traits).append(article(pick(HAIR_STYLE[style]).format(c=tint)))
    elif tint:
        traits.append(f"{tint} hair")
    if named["skin"]:
        traits.append(f"{pick(SKIN[label['skin']])} skin")
    for k, words in (("eyes", EYES), ("mouth", MOUTH), ("nose", NOSE), ("facial_hair", FACIAL_HAIR)):
        if named[k]:
            (wear if label[k] in ("glasses", "sunglasses") and rng.random() < .4 else traits).append(pick(words[label[k]]))
    if named["clothing_color"] or named["clothing"]:
        tone = pick(COLOR[label["clothing_color"]]) + " " if named["clothing_color"] else ""
        garment = tone + (pick(CLOTHING[label["clothing"]]) if named["clothing"] else pick(GARMENT))
        garment = garment if garment.endswith("clothes") else article("a " + garment)
        (wear if rng.random() < .6 else traits).append(garment)
    lean = .85 if style in LONG_STYLES else .3
    lean = .04 if label["facial_hair"] != "none" else lean
    noun = pick(NEUTRAL) if rng.random() < .3 else pick(WOMAN if rng.random() < lean else MAN)
    rng.shuffle(adjectives)
    rng.shuffle(traits)
    rng.shuffle(wear)
    join = lambda w: w[0] if len(w) == 1 else ", ".join(w[:-1]) + (pick([" and ", ", ", ", and "])) + w[-1]
    subject = " ".join([w for w in [pick(AGE)] + adjectives if w] + [noun])
    subject = article("a " + subject) if rng.random() < .85 and noun != "someone" else subject
    text = f"{article(pick(['a ', '']) + pick(MEDIUM))} of {subject}" if rng.random() < .25 else subject
    parts = []
    if traits:
        parts.append("with " + join(traits))
    if wear:
        parts.append(pick(["wearing ", "in ", "dressed in "] if not any("glasses" in w for w in wear) else ["wearing "]) + join(wear))
    rng.shuffle(parts)
    scene = ""
    if named["background"]:
        shade = pick(COLOR[label["background"]])
        scene = pick([f", {shade} background", f", {shade} background", f" on a {shade} background", f", a {shade} background",
                      f" against a {shade} background", f" in front of a {shade} wall", f", {shade} backdrop", f" and a {shade} background"])
        scene = article(scene) if scene[0] == "," else " " + article(scene)
    if scene.startswith(",") and rng.random() < .12:
        return article(f"{scene[2:]}, {text} {pick([' ', ', ']).join(parts)}").replace(" ,", ","), used
    return article(f"{text} {pick([' ', ', ']).join(parts)}{scene}").replace(" ,", ","), used


def words_of(text):
    """As the tokenizer splits: lower case, words and single punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


EXTRA = """human people adult child kid baby old elderly lady female male red crimson cyan teal turquoise hat hoodie jacket dress
coat suit tie earrings curly straight wavy spiky ponytail braid hairs haired eyed skin toned faced smile smiles wears has having his
her their its the this that is are at by to for from who looks looking like very bright light pale dark deep simple plain blurry soft
big small large little round cute nice pretty beautiful handsome cool funny style styled colored coloured colour color hair eyes eye
mouth nose head face wall backdrop background scene front behind angry serious neutral calm excited joyful cheerful crying one two
no not without and or but of on in with a an""".split()


def build_vocabulary(texts):
    """{word: id}; 0 = [UNK], 1 = [BOS]."""
    words = {w for t in texts for w in words_of(t)} | set(EXTRA) | set(",.'-!")
    return {w: i for i, w in enumerate(["[UNK]", "[BOS]"] + sorted(words))}


def write_tokenizer(vocabulary, path):
    """A word-level tokenizer.json for the `tokenizers` library."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    t = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    t.normalizer = normalizers.Lowercase()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    t.save(str(path))
    spec = json.loads(path.read_text())
    assert spec["model"]["vocab"]["[BOS]"] == 1
