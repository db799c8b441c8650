//! Whatever a user or a stranger can put into a dataset ends in an error that says where and what, and never in a
//! panic.

#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helper functions, too"
)]

use std::path::{Path, PathBuf};

use diptych_data::{
    Dataset, Error, HostTensor, ImageSource, LatentPairs, LatentTensors, Layout, MAX_LINE_BYTES, resize_and_crop,
};
use image::{Rgb, RgbImage};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A folder with `one.png` and one file of records; `message` is what loading it says.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        RgbImage::from_pixel(4, 4, Rgb([1, 2, 3]))
            .save(folder.path().join("one.png"))
            .unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }
}

fn message(path: &Path, layout: Layout) -> String {
    Dataset::load(&[path.to_path_buf()], layout).unwrap_err().to_string()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn rows() {
    let folder = Folder::new();
    let ok = r#""prompt": "x", "chosen_image": "one.png", "rejected_image": "one.png""#;
    let cases = [
        (
            format!("{{{ok}, \"chosen_scores\": 1}}"),
            "unknown key `chosen_scores` (did you mean `chosen_score`?); expected prompt, chosen_image",
        ),
        (
            format!("{{{ok}, \"caption\": 1}}"),
            "unknown key `caption`; expected prompt",
        ),
        (
            r#"{"prompt": "x", "chosen_image": "one.png"}"#.to_owned(),
            "missing key `rejected_image`; expected a path relative to the file, or {\"bytes\": \"<base64>\"}",
        ),
        (
            r#"{"chosen_image": "one.png", "rejected_image": "one.png"}"#.to_owned(),
            "missing key `prompt`; expected a string",
        ),
        (
            ok.replace("\"x\"", "[1, 2]"),
            "`prompt`: found an array of 2 elements, expected a string",
        ),
        (ok.replace("\"x\"", "null"), "`prompt`: found null, expected a string"),
        (
            ok.replacen("\"one.png\"", "7", 1),
            "`chosen_image`: found the number 7, expected a path",
        ),
        (
            ok.replacen("\"one.png\"", "{}", 1),
            "missing key `chosen_image.bytes`; expected the image's bytes as base64",
        ),
        (
            ok.replacen("\"one.png\"", r#"{"byte": ""}"#, 1),
            "unknown key `chosen_image.byte` (did you mean `bytes`?); expected bytes, path",
        ),
        (
            ok.replacen("\"one.png\"", r#"{"bytes": true}"#, 1),
            "`chosen_image.bytes`: found the boolean true, expected a string",
        ),
        (
            ok.replacen("\"one.png\"", r#"{"bytes": "a*b"}"#, 1),
            "`chosen_image.bytes`: not base64: Invalid symbol",
        ),
        (ok.replacen("one.png", "", 1), "`chosen_image`: the path `` is empty"),
        (
            ok.replacen("one.png", "/etc/passwd", 1),
            "`chosen_image`: the path `/etc/passwd` is absolute",
        ),
        (
            ok.replacen("one.png", "a/../../b.png", 1),
            "the path `a/../../b.png` leads out of the folder through `..`",
        ),
        (ok.replacen("one.png", "two.png", 1), "`chosen_image`: no image file at"),
        (ok.replacen("one.png", ".", 1), "`chosen_image`: no image file at"),
        (
            ok.replacen("one.png", "a\\u0000b", 1),
            "`chosen_image`: no image file at",
        ),
        (
            format!("{ok}, \"chosen_score\": \"0.5\""),
            "`chosen_score`: found the string \"0.5\", expected a number",
        ),
        (
            format!("{ok}, \"chosen_score\": 1e999"),
            "not one JSON object a line: number out of range",
        ),
        (
            format!("{ok}, \"chosen_score\": NaN"),
            "not one JSON object a line: expected value at column",
        ),
        (
            format!("{ok}, \"id\": 1.5"),
            "`id`: found the number 1.5, expected a string or an integer",
        ),
        (format!("{ok}, \"prompt\": \"y\""), "the key `prompt` appears twice"),
        (
            format!("{{{ok}"),
            "not one JSON object a line: EOF while parsing an object",
        ),
        (
            format!("{{{ok}}} {{}}"),
            "not one JSON object a line: trailing characters",
        ),
        (
            "[{}]".to_owned(),
            "not one JSON object a line: invalid type: sequence, expected a JSON object",
        ),
        (r#"{"prompt": "\ud800"}"#.to_owned(), "not one JSON object a line"),
    ];
    assert_eq!(cases.len(), 26);
    for (row, expected) in cases {
        let row = if row.starts_with(['{', '[']) {
            row
        } else {
            format!("{{{row}}}")
        };
        let path = folder.write("rows.jsonl", format!("{{{ok}}}\n\n{row}\n"));
        let message = message(&path, Layout::Preference);
        assert!(
            message.starts_with(&format!("{}, row 3: ", path.display())),
            "{message}"
        );
        assert!(message.contains(expected), "{message}\ndoes not say: {expected}");
    }
    let path = folder.write("rows.jsonl", b"{\"prompt\": \"\xff\"}");
    assert!(message(&path, Layout::ImageCaption).ends_with("row 1: not UTF-8 at byte 12 of the line"));
}

#[test]
fn huge_lines() {
    let folder = Folder::new();
    let long = folder.write("long.jsonl", vec![b'x'; MAX_LINE_BYTES + 2]);
    assert!(message(&long, Layout::Preference).contains("the line is longer than 67108864 bytes"));
    let keys: Vec<String> = (0..300).map(|i| format!("\"{i}\": 0")).collect();
    let many = folder.write("many.jsonl", format!("{{{}}}", keys.join(",")));
    assert!(message(&many, Layout::Preference).contains("more than 256 keys"));
    let deep = folder.write("deep.jsonl", "{\"prompt\": ".repeat(1_000_000));
    assert!(message(&deep, Layout::Preference).contains("recursion limit"));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn paths_and_layouts() {
    let folder = Folder::new();
    let says = |path: &Path, layout: Layout, expected: &str| {
        let message = message(path, layout);
        assert!(message.contains(expected), "{message}\ndoes not say: {expected}");
    };
    says(
        &folder.path().join("none.jsonl"),
        Layout::Auto,
        "none.jsonl: no such file or folder",
    );
    says(
        &folder.path().join("*.jsonl"),
        Layout::Auto,
        "no file matches this pattern",
    );
    says(Path::new("a[b*"), Layout::Auto, "not a valid pattern");
    says(
        &folder.path(),
        Layout::Auto,
        "cannot tell the layout: found 1 *.png; set `layout` to one of preference",
    );
    says(
        &folder.path(),
        Layout::LatentPairs,
        "found 1 *.png; the latent-pairs layout expects *.safetensors files",
    );
    let empty = folder.write("empty.jsonl", "\n \n");
    says(&empty, Layout::Auto, "empty.jsonl: the dataset is empty");
    says(&empty, Layout::Preference, "empty.jsonl: the dataset is empty");
    says(
        &folder.write("data.csv", "prompt,image"),
        Layout::Auto,
        "cannot tell the layout: found a .csv file",
    );
    says(
        &folder.write("data", "x"),
        Layout::Auto,
        "cannot tell the layout: found no file extension",
    );
    let texts = folder.write("text.jsonl", r#"{"prompt": "", "chosen": "", "rejected": ""}"#);
    says(
        &texts,
        Layout::Auto,
        "text.jsonl: these are text pairs; expected records of images, prompts or latent pairs",
    );
    let unknown = folder.write(
        "unknown.jsonl",
        r#"{"image": "one.png", "question": "", "answer": "", "option": ""}"#,
    );
    says(
        &unknown,
        Layout::Auto,
        "a first row with the keys [image, question, answer, option]",
    );
    says(
        &folder.write("array.json", "[\n{}]"),
        Layout::Auto,
        "array.json: cannot tell the layout: found a first row with the keys []",
    );
    assert!(matches!(Dataset::load(&[], Layout::Auto), Err(Error::NoPaths)));

    let caption = folder.write("caption.jsonl", r#"{"prompt": "", "image": "one.png"}"#);
    let pair = folder.write(
        "pair.jsonl",
        r#"{"prompt": "", "chosen_image": "one.png", "rejected_image": "one.png"}"#,
    );
    let mixed = Dataset::load(&[caption.clone(), pair.clone()], Layout::Auto)
        .unwrap_err()
        .to_string();
    assert!(mixed.contains("pair.jsonl has the preference layout, but"), "{mixed}");
    let twice = Dataset::load(&[pair.clone(), folder.path().join("p*.jsonl")], Layout::Auto).unwrap_err();
    assert!(matches!(twice, Error::DuplicateFile { .. }));
    says(
        &pair,
        Layout::ImageCaption,
        "`layout` is image-caption, but this file has the preference layout; set `layout` to preference, or leave it out",
    );
    let other = Dataset::load(&[pair], Layout::LatentPairs).unwrap_err();
    assert!(
        matches!(
            other,
            Error::OtherLayout {
                layout: Layout::LatentPairs,
                found: Layout::Preference,
                ..
            }
        ),
        "{other}"
    );
    assert!(other.is_configuration());
}

#[test]
fn several_files_patterns_and_hidden_files() {
    let folder = Folder::new();
    let row = |id: &str| format!(r#"{{"prompt": "", "image": "one.png", "id": "{id}"}}"#);
    for name in ["b", "a", "c"] {
        folder.write(&format!("{name}.jsonl"), row(name));
    }
    folder.write(".hidden.jsonl", "broken");
    folder.write("notes.md", "not a record");
    folder.write("empty.jsonl", "");
    let ids = |paths: &[PathBuf]| {
        let dataset = Dataset::load(paths, Layout::Auto).unwrap();
        (0..dataset.len())
            .map(|index| dataset.record_id(index))
            .collect::<String>()
    };
    assert_eq!(ids(&[folder.path()]), "abc");
    assert_eq!(ids(&[folder.path().join("*.jsonl")]), "abc");
    assert_eq!(
        ids(&[folder.path().join("[bc].jsonl"), folder.path().join("a.jsonl")]),
        "bca"
    );
    // A name with a pattern's characters is a name where such a file exists.
    let literal = folder.write("[a].jsonl", row("literal"));
    assert_eq!(ids(&[literal]), "literal");
}

#[test]
fn images() {
    let folder = Folder::new();
    let png = std::fs::read(folder.path().join("one.png")).unwrap();
    let noisy = RgbImage::from_fn(64, 64, |x, y| {
        Rgb([(x * 37 + y * 91) as u8, (x * y) as u8, (x ^ y) as u8])
    });
    let jpg = folder.path().join("noisy.jpg");
    noisy.save(&jpg).unwrap();
    let jpg = std::fs::read(jpg).unwrap();
    let mut flipped = png.clone();
    flipped[45] ^= 0xff;
    let cases: [(&str, Vec<u8>, &str); 9] = [
        ("empty", vec![], "neither PNG, JPEG nor WebP"),
        ("text", b"not an image".to_vec(), "neither PNG, JPEG nor WebP"),
        ("gif", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;".to_vec(), "not"),
        ("png cut in the header", png[..20].to_vec(), ""),
        ("png cut in the data", png[..png.len() - 20].to_vec(), ""),
        ("png with a flipped byte", flipped, ""),
        ("giant png", giant_png(1_000_000_000, 1_000_000_000), ""),
        ("large png", giant_png(16_384, 16_384), "need more than"),
        (
            "jpg cut in the data",
            jpg[..jpg.len() / 2].to_vec(),
            "the JPEG data is cut short",
        ),
    ];
    for (name, bytes, expected) in cases {
        let file = folder.write("bad.png", &bytes);
        for source in [ImageSource::Bytes(bytes.into()), ImageSource::Path(file)] {
            let message = source
                .decode()
                .err()
                .unwrap_or_else(|| panic!("{name} decodes"))
                .to_string();
            assert!(
                message.contains(&format!("{source}: cannot decode the image: ")),
                "{name}: {message}"
            );
            assert!(message.contains(expected), "{name}: {message}");
        }
    }
    assert!(matches!(
        ImageSource::Path(folder.path().join("none.png")).decode(),
        Err(Error::Io { .. })
    ));
    let row = r#"{"prompt": "", "chosen_image": "one.png", "rejected_image": "bad.png", "id": "r7"}"#;
    let path = folder.write("rows.jsonl", row);
    let Dataset::Pairs(pairs) = Dataset::load(&[path], Layout::Auto).unwrap() else {
        panic!()
    };
    let message = pairs[0].decode().unwrap_err().to_string();
    assert!(message.starts_with("record `r7`, `rejected_image`: "), "{message}");
    assert!(message.contains("bad.png: cannot decode"), "{message}");
}

/// A PNG whose header claims any size, and whose data is one short, valid chunk.
fn giant_png(width: u32, height: u32) -> Vec<u8> {
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
        })
    }
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = width.to_be_bytes().to_vec();
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    for (kind, data) in [
        (b"IHDR", header.as_slice()),
        (b"IDAT", b"\x78\x9c\x03\x00\x00\x00\x00\x01"),
        (b"IEND", b""),
    ] {
        let chunk = [kind.as_slice(), data].concat();
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(&chunk);
        png.extend(crc(&chunk).to_be_bytes());
    }
    png
}

#[test]
fn resizing() {
    let image = RgbImage::from_fn(30, 20, |x, y| Rgb([x as u8, y as u8, 0]));
    assert_eq!(resize_and_crop(&image, 30, 20).unwrap(), image);
    for size in [(1, 1), (1, 500), (500, 1), (20, 20)] {
        assert_eq!(resize_and_crop(&image, size.0, size.1).unwrap().dimensions(), size);
    }
    // Cropping alone moves no value: columns 5 to 24 of the middle.
    let cropped = resize_and_crop(&image, 20, 20).unwrap();
    assert_eq!(
        (cropped.get_pixel(0, 3).0, cropped.get_pixel(19, 3).0),
        ([5, 3, 0], [24, 3, 0])
    );
    for (image, size) in [(&image, (0, 4)), (&image, (4, 100_000)), (&RgbImage::new(0, 3), (4, 4))] {
        assert!(matches!(
            resize_and_crop(image, size.0, size.1),
            Err(Error::ImageSize { .. })
        ));
    }
    assert!(matches!(
        ImageSource::from_image(&RgbImage::new(0, 3)),
        Err(Error::ImageSize { .. })
    ));
}

type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn floats(name: &'static str, shape: &[usize]) -> Tensor {
    let len = shape.iter().product::<usize>();
    let data = (0..len).flat_map(|i| (i as f32).to_le_bytes()).collect();
    (name, Dtype::F32, shape.to_vec(), data)
}

fn good() -> Vec<Tensor> {
    vec![
        floats("latents_chosen", &[2, 4, 3, 3]),
        floats("latents_rejected", &[2, 4, 3, 3]),
        floats("encoder_hidden_states", &[2, 5, 6]),
    ]
}

fn shard(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn shards() {
    let folder = Folder::new();
    let with = |extra: Tensor| {
        good()
            .into_iter()
            .filter(|tensor| tensor.0 != extra.0)
            .chain([extra.clone()])
            .collect()
    };
    let timesteps = |values: [i64; 2]| {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        with(("timesteps", Dtype::I64, vec![2], data))
    };
    let mut nan = floats("noise", &[2, 4, 3, 3]);
    nan.3[4 * 40..4 * 41].copy_from_slice(&f32::NAN.to_le_bytes());
    nan.3[4 * 50..4 * 51].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let cases: Vec<(Vec<Tensor>, &str)> = vec![
        (
            with(floats("latent_chosen", &[2, 4, 3, 3])),
            "unknown tensor `latent_chosen` (did you mean `latents_chosen`?)",
        ),
        (good()[..2].to_vec(), "missing tensor `encoder_hidden_states` (N, T, D)"),
        (
            with(floats("latents_rejected", &[2, 4, 3, 2])),
            "`latents_rejected` has shape [2, 4, 3, 2]; expected [2, 4, 3, 3] as `latents_chosen`",
        ),
        (
            with(floats("latents_chosen", &[2, 36])),
            "`latents_chosen` has shape [2, 36]; expected (N, C, H, W)",
        ),
        (
            with(floats("latents_chosen", &[])),
            "`latents_chosen` has shape []; expected at least one dimension",
        ),
        (
            with(floats("latents_chosen", &[0, 4, 3, 3])),
            "`latents_chosen` has shape [0, 4, 3, 3]; expected at least one dimension and none of size 0",
        ),
        (
            with(floats("encoder_hidden_states", &[3, 5, 6])),
            "expected 2 records in the first dimension as `latents_chosen`",
        ),
        (
            with(floats("encoder_hidden_states", &[2, 5])),
            "`encoder_hidden_states` has shape [2, 5]; expected (N, T, D)",
        ),
        (
            with(floats("noise", &[2, 4, 3, 4])),
            "`noise` has shape [2, 4, 3, 4]; expected [2, 4, 3, 3] as `latents_chosen`",
        ),
        (
            with(floats("time_ids", &[2, 6])),
            "missing tensor `pooled` (N, P); `time_ids` (SDXL) come with it",
        ),
        (
            with(floats("time_ids", &[2, 5])),
            "`time_ids` has shape [2, 5]; expected (N, 6)",
        ),
        (
            with(("noise", Dtype::F64, vec![1], vec![0; 8])),
            "`noise` has dtype F64; expected F32, F16 or BF16",
        ),
        (
            with(floats("timesteps", &[2])),
            "`timesteps` has dtype F32; expected an integer type",
        ),
        (
            with(("timesteps", Dtype::U8, vec![3], vec![0; 3])),
            "`timesteps` has shape [3]; expected 2 records",
        ),
        (
            with(("timesteps", Dtype::U8, vec![2, 1], vec![0; 2])),
            "`timesteps` has shape [2, 1]; expected (N)",
        ),
        (
            timesteps([3, -1]),
            "`timesteps` of record 1 is -1; expected an integer from 0 to 4294967295",
        ),
        (timesteps([1 << 40, 0]), "`timesteps` of record 0 is 1099511627776"),
        (
            with(nan),
            "`noise` has 2 values that are NaN or infinite, the first in record 1",
        ),
    ];
    assert_eq!(cases.len(), 18);
    for (tensors, expected) in cases {
        let path = folder.write("bad.safetensors", shard(&tensors));
        let message = message(&path, Layout::Auto);
        assert!(message.starts_with(&format!("{}: ", path.display())), "{message}");
        assert!(message.contains(expected), "{message}\ndoes not say: {expected}");
    }
}

#[test]
fn cut_and_forged_shards() {
    let folder = Folder::new();
    let whole = shard(&good());
    let header_len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    // Every cut in the header, and some in the data.
    for len in (0..8 + header_len).chain([8 + header_len, whole.len() - 4, whole.len() - 1]) {
        let path = folder.write("cut.safetensors", &whole[..len]);
        assert!(
            message(&path, Layout::Auto).contains("not a complete safetensors file: "),
            "cut at {len}"
        );
    }
    let forge = |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    let forged = [
        [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat(),
        forge(r#"{"noise": {"dtype": "F32", "shape": [4294967296, 4294967296, 16], "data_offsets": [0, 0]}}"#),
        forge(r#"{"noise": {"dtype": "F32", "shape": [1000000], "data_offsets": [0, 4000000]}}"#),
        forge(r#"{"noise": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}"#),
        forge(r#"{"noise": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}"#),
        forge("[]"),
    ];
    for bytes in forged {
        let path = folder.write("forged.safetensors", &bytes);
        let message = message(&path, Layout::Auto);
        assert!(message.contains("not a complete safetensors file: "), "{message}");
    }
    // A zero anywhere in a shape makes any other size possible without data.
    let zero =
        forge(r#"{"latents_chosen": {"dtype": "F32", "shape": [18446744073709551615, 0], "data_offsets": [0, 0]}}"#);
    assert!(message(&folder.write("zero.safetensors", zero), Layout::Auto).contains("none of size 0"));
}

#[test]
fn shards_that_disagree() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path().join("shards")).unwrap();
    folder.write("shards/a.safetensors", shard(&good()));
    let mut with_noise = good();
    with_noise.push(floats("noise", &[2, 4, 3, 3]));
    folder.write("shards/b.safetensors", shard(&with_noise));
    let text = message(&folder.path().join("shards"), Layout::Auto);
    assert!(
        text.contains("b.safetensors: `noise` has records of shape [4, 3, 3], but in the first shard, "),
        "{text}"
    );
    assert!(text.contains("a.safetensors, it is absent"), "{text}");
    let wider = vec![
        good().remove(0),
        good().remove(1),
        floats("encoder_hidden_states", &[2, 5, 7]),
    ];
    folder.write("shards/b.safetensors", shard(&wider));
    let text = message(&folder.path().join("shards"), Layout::LatentPairs);
    assert!(
        text.contains("`encoder_hidden_states` has records of shape [5, 7]"),
        "{text}"
    );
}

#[test]
fn tensors_from_memory() {
    let tensor = |shape: &[usize]| HostTensor::new(shape.to_vec(), vec![0.0; shape.iter().product()]).unwrap();
    assert!(
        HostTensor::new(vec![], vec![1.0])
            .unwrap_err()
            .to_string()
            .contains("has shape []")
    );
    assert!(
        HostTensor::new(vec![2, 0], vec![])
            .unwrap_err()
            .to_string()
            .contains("has shape [2, 0]")
    );
    assert!(
        HostTensor::new(vec![2, 2], vec![0.0; 3])
            .unwrap_err()
            .to_string()
            .contains("has 3 values")
    );
    assert!(HostTensor::new(vec![usize::MAX, 2], vec![0.0; 3]).is_err());
    let tensors = LatentTensors {
        latents_chosen: tensor(&[2, 1, 2, 2]),
        latents_rejected: tensor(&[2, 1, 2, 2]),
        encoder_hidden_states: tensor(&[2, 3, 4]),
        pooled: None,
        time_ids: None,
        noise: None,
        timesteps: Some(vec![1, 2, 3]),
        chosen_score: None,
        rejected_score: None,
    };
    let scored = LatentTensors {
        timesteps: None,
        chosen_score: Some(tensor(&[2])),
        ..tensors.clone()
    };
    let message = LatentPairs::new(scored).unwrap_err().to_string();
    assert!(message.contains("rejected_score"), "{message}");
    let message = LatentPairs::new(tensors).unwrap_err().to_string();
    assert_eq!(
        message,
        "latent pairs: `timesteps` has shape [3]; expected 2 records in the first dimension as `latents_chosen`"
    );
}
