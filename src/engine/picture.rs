//! Pictures and PNG files.

use super::Error;
use std::io::Write;
use std::path::Path;

/// RGB pixels, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Lays pictures of one size out on a sheet, row by row, with a white gap between them.
    pub fn sheet(pictures: &[Picture], columns: usize) -> Picture {
        const GAP: usize = 4;
        let Some(first) = pictures.first() else { return Picture { width: 0, height: 0, rgb: Vec::new() } };
        let columns = columns.clamp(1, pictures.len());
        let rows = pictures.len().div_ceil(columns);
        let (width, height) = (columns * (first.width + GAP) - GAP, rows * (first.height + GAP) - GAP);
        let mut rgb = vec![255; width * height * 3];
        for (index, picture) in pictures.iter().enumerate() {
            let (left, top) = (index % columns * (first.width + GAP), index / columns * (first.height + GAP));
            for (row, line) in picture.rgb.chunks_exact(picture.width * 3).enumerate() {
                rgb[((top + row) * width + left) * 3..][..line.len()].copy_from_slice(line);
            }
        }
        Picture { width, height, rgb }
    }

    /// PNG bytes with text chunks: tEXt where Latin-1 can carry the text, iTXt otherwise.
    pub fn to_png(&self, texts: &[(&str, String)]) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        for (keyword, text) in texts {
            let (keyword, text) = ((*keyword).to_owned(), text.clone());
            if text.chars().all(|c| u32::from(c) < 256) {
                encoder.add_text_chunk(keyword, text)?;
            } else {
                encoder.add_itxt_chunk(keyword, text)?;
            }
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.rgb)?;
        writer.finish()?;
        Ok(bytes)
    }

    /// Writes a PNG file, whole or not at all: the bytes go to a temporary file beside it, which then takes its name.
    pub fn save(&self, path: &Path, texts: &[(&str, String)]) -> Result<(), Error> {
        let error = |source| Error::Write { path: path.into(), source };
        let bytes = self.to_png(texts).map_err(|source| error(std::io::Error::other(source)))?;
        write_whole(path, &bytes).map_err(error)
    }
}

/// Replaces the file at `path` by `bytes`, or leaves everything as it was.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        // Nothing half-written stays behind; if even this fails the first error is the one to report.
        let _ = std::fs::remove_file(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient() -> Picture {
        Picture { width: 3, height: 2, rgb: (0..18).collect() }
    }

    #[test]
    fn png_carries_pixels_and_texts() {
        let bytes = gradient().to_png(&[("prompt", "caf\u{e9}".into()), ("model", "\u{4e16}".into())]).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, gradient().rgb);
        let info = reader.info();
        assert_eq!(info.uncompressed_latin1_text[0].text, "caf\u{e9}");
        assert_eq!(info.utf8_text[0].get_text().unwrap(), "\u{4e16}");
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let taken = folder.path().join("taken.png");
        std::fs::create_dir(&taken).unwrap();
        assert!(gradient().save(&taken, &[]).is_err());
        assert!(gradient().save(&folder.path().join("no/such/folder.png"), &[]).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_sheet_keeps_every_picture_in_its_place() {
        let sheet = Picture::sheet(&[gradient(), gradient(), gradient()], 2);
        assert_eq!((sheet.width, sheet.height), (3 + 4 + 3, 2 + 4 + 2));
        assert_eq!(sheet.rgb[7 * 3..][..9], gradient().rgb[..9]);
        assert_eq!(sheet.rgb[6 * 10 * 3..][..9], gradient().rgb[..9]);
    }
}
