//! Measuring decoders on held-out prompts: passes, time, attribute accuracy, likelihood, FID.

pub mod fid;
pub mod plot;

use crate::backend::Backend;
use crate::checkpoint::{Error as CheckpointError, Files};
use crate::decode::Stats;
use crate::decode::methods::Method;
use crate::engine::{Error, Generator, Output, Picture, Request};
use crate::nn::classifier::Classifier;
use crate::rng::{Purpose, Stream};
use crate::sampling::{Sampling, argmax};
use fid::Moments;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// A held-out prompt with what it names.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Case {
    /// The words.
    pub prompt: String,
    /// Attribute -> class, for the attributes that the words name.
    pub attributes: BTreeMap<String, String>,
}

/// What judges pictures: held-out prompts, classifier, feature statistics of real pictures.
pub struct Judge<B: Backend> {
    /// The prompts.
    pub cases: Vec<Case>,
    classifier: Classifier<B>,
    /// Statistics of held-out pictures after a round trip through the VQ tokenizer: what a perfect model would make.
    reference: Moments,
}

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

/// What one decoder did.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Name.
    pub decoder: String,
    /// Name with every knob.
    pub knobs: String,
    /// Is its law the model's?
    pub exact: bool,
    /// Pictures that were made.
    pub images: usize,
    /// Passes per picture.
    pub nfe: Estimate,
    /// Rows fed to the target per picture, in each branch.
    #[serde(default)]
    pub rows: Option<Estimate>,
    /// Passes per picture of a drafter that is a model of its own.
    #[serde(default)]
    pub draft_passes: Option<Estimate>,
    /// Rows fed to it per picture, in each branch.
    #[serde(default)]
    pub draft_rows: Option<Estimate>,
    /// Passes of plain decoding of the same target over these, when it was measured in the same run.
    pub passes_ratio: Option<f64>,
    /// Seconds per picture, one picture at a time on all threads, without pixels.
    pub seconds: Estimate,
    /// Seconds of that over these, when it was measured in the same run.
    pub time_ratio: Option<f64>,
    /// Share of drafts that their first verification left unchanged.
    pub acceptance: Estimate,
    /// The same for each position of the grid, over the pictures; `None` where nothing was drafted.
    pub acceptance_by_position: Vec<Option<f64>>,
    /// Share of the named attributes that the classifier finds.
    pub attribute_accuracy: Estimate,
    /// Bits per token of the samples under plain AR's processed distribution; null of pictures that have no tokens.
    pub nll: Option<Estimate>,
    /// Fréchet distance to reconstructions of held-out pictures, in the classifier's features; bootstrap error.
    pub fid: Estimate,
    /// The first pictures, at most [`SHOWN`].
    #[serde(skip)]
    pub pictures: Vec<Picture>,
}

struct Sample {
    stats: Stats,
    first: Vec<Option<bool>>,
    accuracy: Option<f64>,
    nll: Option<f64>,
    features: Vec<f32>,
    picture: Picture,
}

impl<B: Backend> Judge<B> {
    /// Loads `heldout.json`, the classifier and `reference_stats.safetensors`.
    pub fn load(generator: &Generator<B>, files: &Files) -> Result<Self, Error> {
        let name = "heldout.json";
        let invalid = |file: &str, reason: String| CheckpointError::Format { file: file.into(), reason };
        let cases: Vec<Case> =
            serde_json::from_slice(&files.read(name)?).map_err(|error| invalid(name, error.to_string()))?;
        let classifier = generator.model.load_classifier(files)?;
        let classifier =
            classifier.ok_or_else(|| Error::Request("this model has no classifier to judge with".into()))?;
        check(&cases, &classifier).map_err(|reason| invalid(name, reason))?;
        let features = generator.model.config.classifier.as_ref().map_or(0, |config| config.features);
        let tensors = files.tensors("reference_stats")?;
        let moments = |name: &str| -> Result<Moments, CheckpointError> {
            let mean = tensors.take::<f32>(&format!("{name}.mean"), &[features])?;
            let covariance = tensors.take::<f32>(&format!("{name}.covariance"), &[features, features])?;
            Ok(Moments::new(&mean, &covariance))
        };
        let reference = moments("reconstructions")?;
        moments("renders")?;
        tensors.finish()?;
        Ok(Self { cases, classifier, reference })
    }

    /// Runs `method` on the first `images` prompts (again from the start when there are fewer), image i with seed i.
    /// `tick` is called once per picture.
    pub fn run(
        &self,
        generator: &Generator<B>,
        method: Method,
        sampling: Sampling,
        images: usize,
        tick: &(dyn Fn() + Sync),
    ) -> Result<Report, Error> {
        let request = |index: usize| Request {
            prompt: self.cases[index % self.cases.len()].prompt.clone(),
            seed: index as u64,
            sampling,
            method,
        };
        let timed: Vec<Output> = (0..images.min(TIMED))
            .map(|index| generator.generate(&request(index), &mut |_| ()))
            .collect::<Result<_, Error>>()?;
        let seconds = Estimate::of(timed.iter().map(|output| output.decode_time.as_secs_f64()));
        let sample = |index: usize| {
            let output = timed.get(index).cloned();
            let output = output.map_or_else(|| generator.generate(&request(index), &mut |_| ()), Ok)?;
            let sample = self.judge(generator, &request(index), &self.cases[index % self.cases.len()], output);
            tick();
            sample
        };
        let samples: Vec<Sample> = (0..images).into_par_iter().map(sample).collect::<Result<_, Error>>()?;
        let over = |value: fn(&Sample) -> Option<f64>| Estimate::of(samples.iter().filter_map(value));
        Ok(Report {
            decoder: method.name().into(),
            knobs: method.to_string(),
            exact: method.is_exact(),
            images,
            nfe: over(|sample| Some(sample.stats.nfe as f64)),
            rows: Some(over(|sample| Some(sample.stats.rows as f64))),
            draft_passes: Some(over(|sample| Some(sample.stats.draft.passes as f64))),
            draft_rows: Some(over(|sample| Some(sample.stats.draft.rows as f64))),
            passes_ratio: None,
            seconds,
            time_ratio: None,
            acceptance: over(|sample| Some(sample.stats.acceptance())),
            acceptance_by_position: by_position(&samples),
            attribute_accuracy: over(|sample| sample.accuracy),
            nll: method.continuous().is_none().then(|| over(|sample| sample.nll)),
            fid: self.fid(&samples),
            pictures: samples.into_iter().take(SHOWN).map(|sample| sample.picture).collect(),
        })
    }

    fn judge(&self, generator: &Generator<B>, request: &Request, case: &Case, output: Output) -> Result<Sample, Error> {
        let picture = &output.picture;
        let judged = self.classifier.judge(&generator.model.backend, &picture.rgb, (picture.height, picture.width))?;
        let right = case.attributes.iter().filter(|(attribute, class)| {
            let classes = self.classifier.attributes().find(|(name, _)| name == attribute).map(|(_, classes)| classes);
            let logits = judged.logits.iter().find(|(name, _)| name == *attribute).map(|(_, logits)| logits);
            matches!((classes, logits), (Some(classes), Some(logits)) if classes[argmax(logits)] == **class)
        });
        let (named, right) = (case.attributes.len(), right.count());
        let tokens = Some(&output.outcome.tokens).filter(|tokens| !tokens.is_empty());
        let nll =
            tokens.map(|tokens| generator.bits_per_token(&request.prompt, request.sampling, tokens)).transpose()?;
        Ok(Sample {
            stats: output.outcome.stats,
            first: output.outcome.first,
            accuracy: (named > 0).then(|| right as f64 / named as f64),
            nll,
            features: judged.features,
            picture: output.picture,
        })
    }

    /// FID with a bootstrap error over the pictures.
    fn fid(&self, samples: &[Sample]) -> Estimate {
        const RESAMPLES: u32 = 20;
        if samples.len() < 2 {
            return Estimate { value: f64::NAN, error: f64::NAN };
        }
        let rows: Vec<&[f32]> = samples.iter().map(|sample| sample.features.as_slice()).collect();
        let value = Moments::of(rows.iter().copied()).distance(&self.reference);
        let resampled = (0..RESAMPLES).map(|resample| {
            let pick = |index: usize| {
                let stream = Stream { seed: u64::from(resample), image: 0 };
                (stream.uniform(Purpose::Draft, 0, index) * rows.len() as f32) as usize
            };
            let drawn: Vec<&[f32]> = (0..rows.len()).map(|index| rows[pick(index).min(rows.len() - 1)]).collect();
            Moments::of(drawn.iter().copied()).distance(&self.reference)
        });
        let resampled: Vec<f64> = resampled.collect();
        let mean = resampled.iter().sum::<f64>() / f64::from(RESAMPLES);
        let variance = resampled.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(RESAMPLES - 1);
        Estimate { value, error: variance.sqrt() }
    }
}

/// Pictures that a report keeps.
pub const SHOWN: usize = 20;

/// Pictures that are timed, one after another.
const TIMED: usize = 16;

impl Estimate {
    /// Mean and standard error of a sample; NaN where it is too small.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.collect();
        let count = values.len() as f64;
        let value = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|x| (x - value).powi(2)).sum::<f64>() / (count - 1.0);
        Self { value, error: (variance / count).sqrt() }
    }
}

/// Share of first verifications that kept their token, for each position.
fn by_position(samples: &[Sample]) -> Vec<Option<f64>> {
    let positions = samples.iter().map(|sample| sample.first.len()).max().unwrap_or(0);
    let share = |position: usize| {
        let verdicts = samples.iter().filter_map(|sample| sample.first[position]);
        let (kept, all) = verdicts.fold((0, 0), |(kept, all), verdict| (kept + usize::from(verdict), all + 1));
        (all > 0).then(|| f64::from(kept as u32) / f64::from(all))
    };
    (0..positions).map(share).collect()
}

impl Report {
    /// States the ratios to the report of plain decoding of the same target.
    pub fn compare(&mut self, plain: &Cost) {
        self.passes_ratio = Some(plain.nfe / self.nfe.value);
        self.time_ratio = Some(plain.seconds / self.seconds.value);
    }

    /// What others are compared with.
    pub fn cost(&self) -> Cost {
        Cost { nfe: self.nfe.value, seconds: self.seconds.value }
    }
}

/// What plain decoding of a target needs for a picture.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Passes.
    pub nfe: f64,
    /// Seconds.
    pub seconds: f64,
}

/// Every attribute and class of the cases is one that the classifier knows.
fn check<B: Backend>(cases: &[Case], classifier: &Classifier<B>) -> Result<(), String> {
    if cases.is_empty() {
        return Err("there are no prompts".into());
    }
    for (attribute, class) in cases.iter().flat_map(|case| &case.attributes) {
        let known = classifier.attributes().any(|(name, classes)| name == attribute && classes.contains(class));
        if !known {
            return Err(format!("the classifier does not know {attribute} = {class}"));
        }
    }
    Ok(())
}
