//! Knobs: what can be changed about a decoder from the command line.

use std::fmt;
use std::str::FromStr;

/// Settings that have names.
pub trait Knobs {
    /// Every knob with its value, in the order in which they are shown; each value is accepted by [`Knobs::set`].
    fn list(&self) -> Vec<(&'static str, String)>;
    /// Changes one; `Ok(false)` if there is no such knob, or what its value must be.
    fn set(&mut self, knob: &str, value: &str) -> Result<bool, String>;
    /// What is wrong with all of them together, once they are set in any order.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A whole number of at least `least`.
pub(super) fn count(knob: &str, value: &str, least: usize) -> Result<usize, String> {
    const MOST: usize = 10_000;
    let parsed = value.parse().ok().filter(|count| (least..=MOST).contains(count));
    parsed.ok_or_else(|| format!("{knob}={value}: must be a whole number in {least}..={MOST}"))
}

/// A number from 0 to `largest`.
pub(super) fn number(knob: &str, value: &str, largest: f64) -> Result<f64, String> {
    let parsed = value.parse().ok().filter(|number| (0.0..=largest).contains(number));
    parsed.ok_or_else(|| format!("{knob}={value}: must be a number in 0..={largest}"))
}

/// One of a few names.
pub(super) fn choice<T: Copy + fmt::Display + FromStr<Err = String>>(knob: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|names| format!("{knob}={value}: must be {names}"))
}

/// Gives an enum without data its names: `Display`, and a `FromStr` whose error lists them.
macro_rules! names {
    ($type:ident { $first:ident = $first_name:literal $(, $variant:ident = $name:literal)* $(,)? }) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    Self::$first => $first_name,
                    $(Self::$variant => $name,)*
                })
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                match name {
                    $first_name => Ok(Self::$first),
                    $($name => Ok(Self::$variant),)*
                    _ => Err(concat!($first_name $(, " or ", $name)*).into()),
                }
            }
        }
    };
}
pub(super) use names;
