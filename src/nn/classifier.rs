//! The attribute classifier that judges generated pictures; its feature layer is the space of the FID.

use super::Loader;
use super::conv::{Conv3x3, GroupNormSilu, Image};
use super::vq::{image, to_unit};
use crate::backend::{Backend, Epilogue, Error as BackendError, Grouping};
use crate::checkpoint::{ClassifierConfig, Error};

const GROUPS: usize = 8;

/// Strided convolutions, then the means of the whole map and of its four quadrants, then a feature layer with a
/// linear output per attribute.
pub struct Classifier<B: Backend> {
    convs: Vec<(Conv3x3<B>, GroupNormSilu<B>)>,
    fc: B::Weight,
    fc_bias: Vec<f32>,
    outputs: Vec<Output<B>>,
    features: usize,
    channels: usize,
}

struct Output<B: Backend> {
    attribute: String,
    classes: Vec<String>,
    weight: B::Weight,
    bias: Vec<f32>,
}

/// What the classifier sees in a picture.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// Activations of the feature layer.
    pub features: Vec<f32>,
    /// Attribute and logits of its classes, in the order of the config.
    pub logits: Vec<(String, Vec<f32>)>,
}

impl<B: Backend> Classifier<B> {
    /// Loads `classifier.*`.
    pub fn load(loader: &Loader<'_, B>, config: &ClassifierConfig) -> Result<Self, Error> {
        let inputs = [3].into_iter().chain(config.channels.iter().copied());
        let conv = |(index, (cin, &cout)): (usize, (usize, &usize))| {
            let conv = Conv3x3::load(loader, &format!("classifier.convs.{index}"), cin, cout, 2)?;
            Ok((conv, GroupNormSilu::load(loader, &format!("classifier.norms.{index}"), cout, GROUPS)?))
        };
        let channels = config.channels.last().copied().unwrap_or(3);
        let output = |(attribute, classes): (&String, &Vec<String>)| {
            let name = format!("classifier.out.{attribute}");
            Ok(Output {
                attribute: attribute.clone(),
                classes: classes.clone(),
                weight: loader.linear(&name, classes.len(), config.features)?,
                bias: loader.host(&format!("{name}.bias"), &[classes.len()])?,
            })
        };
        Ok(Self {
            convs: inputs.zip(&config.channels).enumerate().map(conv).collect::<Result<_, Error>>()?,
            fc: loader.linear("classifier.fc", config.features, 5 * channels)?,
            fc_bias: loader.host("classifier.fc.bias", &[config.features])?,
            outputs: config.attributes.iter().map(output).collect::<Result<_, Error>>()?,
            features: config.features,
            channels,
        })
    }

    /// Judges RGB pixels `[height, width, 3]`.
    pub fn judge(&self, backend: &B, pixels: &[u8], size: (usize, usize)) -> Result<Judgement, BackendError> {
        let start = image(backend, &to_unit(pixels), size)?;
        let layer = |x: Image<B>, (conv, norm): &(Conv3x3<B>, GroupNormSilu<B>)| {
            norm.forward(backend, &conv.forward(backend, &x)?)
        };
        let map = self.convs.iter().try_fold(start, layer)?;
        let pooled = pool(&backend.read(&map.data)?, map.size, self.channels);
        let silu = |x: f32| x / (1.0 + (-x).exp());
        let features = linear(backend, &pooled, &self.fc, self.features, &self.fc_bias)?;
        let features: Vec<f32> = features.into_iter().map(silu).collect();
        let logits = |out: &Output<B>| {
            let logits = linear(backend, &features, &out.weight, out.classes.len(), &out.bias)?;
            Ok((out.attribute.clone(), logits))
        };
        Ok(Judgement { logits: self.outputs.iter().map(logits).collect::<Result<_, BackendError>>()?, features })
    }

    /// Attributes with the names of their classes.
    pub fn attributes(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.outputs.iter().map(|out| (out.attribute.as_str(), out.classes.as_slice()))
    }
}

fn linear<B: Backend>(
    backend: &B,
    x: &[f32],
    weight: &B::Weight,
    n: usize,
    bias: &[f32],
) -> Result<Vec<f32>, BackendError> {
    let (mut input, mut output) = (backend.operand(1, x.len())?, backend.tensor(1, n)?);
    backend.upload(x, &mut input);
    backend.linear(&input, weight, &mut output, Epilogue::Store, Grouping::One);
    Ok(backend.read(&output)?.iter().zip(bias).map(|(a, b)| a + b).collect())
}

/// Means over the whole map and over its quadrants (top-left, top-right, bottom-left, bottom-right).
fn pool(map: &[f32], (height, width): (usize, usize), channels: usize) -> Vec<f32> {
    let (half_y, half_x) = (height / 2, width / 2);
    let regions = [
        (0..height, 0..width),
        (0..half_y, 0..half_x),
        (0..half_y, half_x..width),
        (half_y..height, 0..half_x),
        (half_y..height, half_x..width),
    ];
    let mean = |(rows, cols): (std::ops::Range<usize>, std::ops::Range<usize>), channel: usize| {
        let count = (rows.len() * cols.len()) as f32;
        let at = |row: usize, col: usize| map[(row * width + col) * channels + channel];
        rows.flat_map(|row| cols.clone().map(move |col| (row, col))).map(|(row, col)| at(row, col)).sum::<f32>() / count
    };
    regions.into_iter().flat_map(|region| (0..channels).map(move |c| mean(region.clone(), c))).collect()
}
