//! Hostile files: each is refused with a sentence, in bounded time and memory, and none panics.

mod common;

use common::*;
use qberta_kernels::mapped::Bytes;
use qberta_store::tensor::Tensor;
use qberta_store::{safetensors, torch};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

fn read(file: Vec<u8>) -> qberta_model::Result<torch::StateDict> {
    torch::read_bytes(&Bytes::from(file))
}

/// The sentence with which a pickle is refused.
fn refusal(pickle: Vec<u8>) -> String {
    let started = Instant::now();
    let e = read(archive(&pickle, &[("0", &floats(6))])).expect_err("a hostile pickle was accepted");
    assert!(started.elapsed() < Duration::from_secs(20), "took {:?}", started.elapsed());
    e.to_string()
}

fn zip_refusal(members: &[Member]) -> String {
    read(zip(members)).expect_err("a hostile archive was accepted").to_string()
}

#[test]
fn an_honest_file_reads() {
    let d = read(archive(&one(6, (0, &[2, 3], &[3, 1])), &[("0", &floats(6))])).unwrap();
    assert_eq!(d.tensors["w"].to_f32().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let d = read(archive(&one(6, (1, &[2, 2], &[1, 2])), &[("0", &floats(6))])).unwrap();
    assert_eq!(d.tensors["w"].to_f32().unwrap(), [1.0, 3.0, 2.0, 4.0]);
    let d = read(archive(&one(6, (5, &[], &[])), &[("0", &floats(6))])).unwrap();
    assert_eq!(d.tensors["w"].to_f32().unwrap(), [5.0]);
    let d = read(archive(&one(6, (1, &[1, 5], &[i64::MAX, 1])), &[("0", &floats(6))])).unwrap();
    assert_eq!(d.tensors["w"].to_f32().unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0]);
    let d = read(archive(&one(6, (1, &[2, 1, 2, 2], &[1, i64::MAX, 0, 2])), &[("0", &floats(6))])).unwrap();
    assert_eq!(d.tensors["w"].to_f32().unwrap(), [1.0, 3.0, 1.0, 3.0, 2.0, 4.0, 2.0, 4.0]);
}

#[test]
fn code_is_refused_by_name() {
    let call = |m: &str, n: &str| Pickle::new().global(m, n).text("echo owned").op(b"\x85R.").0;
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("collections", "OrderedDict.fromkeys"),
        ("torch", "FloatStorage.from_file"),
    ] {
        let e = refusal(call(module, name));
        assert!(e.contains(&format!("would execute {module}.{name}")), "{e}");
    }
    let stacked = Pickle::new().text("os").text("system").op(b"\x93.").0;
    assert!(refusal(stacked).contains("would execute os.system"));
    assert!(refusal(Pickle::new().op(b"(ios\nsystem\n.").0).contains("would execute os.system"));
    // The name is never printed raw.
    let e = refusal(call("os\x1b[2J", &"x".repeat(5000)));
    assert!(!e.contains('\x1b') && e.len() < 600, "{e}");
}

#[test]
fn calls_with_odd_arguments_are_refused() {
    let p = Pickle::new;
    for pickle in [
        p().global("torch._utils", "_rebuild_tensor_v2").op(b")R."),
        p().global("torch._utils", "_rebuild_parameter").op(b"N\x89}\x87R."),
        p().global("torch", "Size").op(b"N\x85R."),
        p().global("collections", "OrderedDict").op(b"]N\x85aR."),
        p().global("_codecs", "encode").text("x").text("utf-16").op(b"\x86R."),
        p().global("torch", "FloatStorage").op(b")R."),
        p().op(b"N)R."),
        p().global("torch", "device").op(b"]R."),
        p().text("storage").op(b"Q."),
        p().op(b"(").text("storage").text("FloatStorage").text("0").text("cpu").int(1).op(b"tQ."),
        p().op(b"(").text("storage").global("torch", "FloatStorage").text("0").text("cpu").int(-1).op(b"tQ."),
        p().op(b"(").text("module").global("torch", "FloatStorage").text("0").text("cpu").int(1).op(b"tQ."),
        p().op(b"N}b."),
    ] {
        let e = refusal(pickle.0);
        assert!(e.contains("data.pkl"), "{e}");
    }
}

#[test]
fn cycles_are_refused() {
    let list = Pickle::new().op(b"]q\x00h\x00a.").0;
    assert!(refusal(list).contains("contains itself"));
    let dict = Pickle::new().op(b"}q\x00").text("w").op(b"h\x00s.").0;
    assert!(refusal(dict).contains("contains itself"));
    let longer = Pickle::new().op(b"]q\x00}q\x01Nh\x00s\x85\x85a.").0;
    assert!(refusal(longer).contains("contains itself"));
}

#[test]
fn depth_is_bounded_and_needs_no_stack() {
    for (opcodes, sentence) in [
        (&b"("[..], "MARKs"),
        (&b")"[..], "on the stack"),
        (&b"N"[..], "on the stack"),
        (&b"]"[..], "on the stack"),
    ] {
        assert!(refusal(Pickle::new().op(&opcodes.repeat(1_000_000)).stop()).contains(sentence));
    }
    assert!(
        refusal(Pickle::new().op(b")").op(&b"\x85".repeat(1_000_000)).stop()).contains("nests too deeply")
    );

    // Each list holds the one before, through the memo, twice: 2^n paths, n nodes.
    let mut doubling = Pickle::new().op(b"]q\x00");
    for _ in 0..100_000 {
        doubling = doubling.op(b"h\x00h\x00\x86q\x00\x86");
    }
    assert!(refusal(doubling.stop()).contains("nests too deeply"));
}

#[test]
fn lengths_are_believed_only_as_far_as_the_file_goes() {
    let p = |op: &[u8]| Pickle::new().op(op).stop();
    for cut in [
        &b"\x8b\xff\x03\x00\x00"[..],
        b"X\xff\xff\xff\xff",
        b"B\xff\xff\xff\xff",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x96\x00\x00\x00\x00\x00\x01\x00\x00",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x8c\xff",
        b"cos",
    ] {
        let e = refusal(p(cut));
        assert!(e.contains("cut off"), "{cut:x?}: {e}");
    }
    assert!(refusal(p(b"\x8b\xff\xff\xff\x7f")).contains("bytes of an integer"));
    assert!(refusal(p(b"\x8b\xff\xff\xff\xff")).contains("negative length"));
}

#[test]
fn copies_are_charged() {
    // A list of pairs, or a long string, copied again and again through the memo.
    let mut pairs = Pickle::new().global("collections", "OrderedDict").op(b"q\x01](");
    for _ in 0..50_000 {
        pairs = pairs.op(b"NN\x86");
    }
    let pairs = pairs.op(b"eq\x00").op(&b"h\x01h\x00\x85R\x85".repeat(1000)).stop();
    assert!(refusal(pairs).contains("too many values"));
    let text = Pickle::new().global("_codecs", "encode").op(b"q\x01").text(&"a".repeat(1 << 20)).op(b"q\x00");
    let text = text.text("latin1").op(b"q\x02").op(&b"h\x01h\x00h\x02\x86R\x85".repeat(1000)).stop();
    assert!(refusal(text).contains("too many values"));
    let recalls = Pickle::new().op(b"Nq\x00").op(&b"h\x00\x85\x85\x85".repeat(2_000_000)).stop();
    assert!(refusal(recalls).contains("too many values"));
}

#[test]
fn unknown_opcodes_and_stray_ends_are_refused() {
    for (code, sentence) in [
        (&b""[..], "cut off"),
        (b".", "does not begin"),
        (b"N.", "does not begin"),
        (b"\x80\x01N.", "protocol"),
        (b"\x80\x06N.", "protocol"),
        (b"\x80\x02N\x80\x02.", "protocol"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02NN.", "left over"),
        (b"\x80\x02(N.", "left over"),
        (b"\x80\x02N.N", "after its end"),
        (b"\x80\x02t.", "not open"),
        (b"\x80\x02N(\x85.", "empty stack"),
        (b"\x80\x02]Na(e.e", "after its end"),
        (b"\x80\x02}(Nu.", "without a value"),
        (b"\x80\x02N(Ne.", "APPEND"),
        (b"\x80\x02N(u.", "SETITEM"),
        (b"\x80\x02h\x00.", "never stored"),
        (b"\x80\x02\x82\x01.", "opcode"),
        (b"\x80\x02)\x81.", "opcode"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
        (b"\x80\x02N.", "no state dict"),
        (b"\x80\x02}.", "no state dict"),
    ] {
        let e = refusal(code.to_vec());
        assert!(e.contains(sentence), "{code:x?}: {e}");
    }
}

#[test]
fn views_stay_inside_their_storage() {
    for view in [
        (0, &[7][..], &[1][..]),
        (6, &[1], &[1]),
        (6, &[], &[]),
        (1, &[2, 3], &[3, 1]),
        (0, &[2, 3], &[1, 3]),
        (0, &[2], &[i64::MAX]),
        (i64::MAX, &[2, 2], &[1, 2]),
        (i64::MAX, &[2], &[1]),
        (0, &[i64::MAX, i64::MAX], &[0, 0]),
        (0, &[i64::MAX], &[1]),
    ] {
        let e = refusal(one(6, view));
        assert!(e.contains("w: tensor reaches outside"), "{view:?}: {e}");
    }
    for view in
        [(-1, &[1][..], &[1][..]), (0, &[-1], &[1]), (0, &[1], &[-1]), (0, &[1], &[]), (0, &[1; 9], &[1; 9])]
    {
        assert!(refusal(one(6, view)).contains("arguments"), "{view:?}");
    }
    for elements in [5, 7, i64::MAX] {
        assert!(refusal(one(elements, (0, &[1], &[1]))).contains("wrong size"));
    }
    let e = read(archive(&one(6, (0, &[6], &[1])), &[])).unwrap_err().to_string();
    assert!(e.contains("w: data/0: storage is missing"), "{e}");
}

#[test]
fn an_expanded_scalar_cannot_take_the_memory() {
    for view in [(0, &[1 << 40][..], &[0][..]), (0, &[1 << 20, 1 << 20], &[0, 0]), (0, &[30_000_000], &[0])] {
        let e = refusal(one(6, view));
        assert!(e.contains("far more than the file holds"), "{view:?}: {e}");
    }
    // The budget is one for the whole file: many views, each below it.
    let mut many = Pickle::new().op(b"}");
    for i in 0..64 {
        many = many.text(&format!("w{i}")).tensor("0", 6, (0, &[1 << 20], &[0])).op(b"s");
    }
    assert!(refusal(many.stop()).contains("far more than the file holds"));
    let d = read(archive(&one(6, (2, &[1000, 2], &[0, 1])), &[("0", &floats(6))])).unwrap();
    assert_eq!(d.tensors["w"].to_f32().unwrap()[1998..], [2.0, 3.0]);
}

#[test]
fn names_occur_once() {
    let w = |p: Pickle| p.text("w").tensor("0", 6, (0, &[6], &[1])).op(b"s");
    assert!(refusal(w(w(Pickle::new().op(b"}"))).stop()).contains("same name twice"));
}

#[test]
fn archives_that_lie_are_refused() {
    let pickle = one(6, (0, &[6], &[1]));
    let base = vec![member("m/data.pkl", &pickle), member("m/data/0", &floats(6))];
    assert!(read(zip(&base)).is_ok());
    let with = |change: &dyn Fn(&mut Member)| {
        let mut members = base.clone();
        change(&mut members[1]);
        zip_refusal(&members)
    };
    assert!(with(&|m| m.method = 8).contains("m/data/0: member is compressed"));
    assert!(with(&|m| m.flags = 1).contains("encrypted"));
    assert!(with(&|m| m.name = "m/data.pkl".into()).contains("same name twice"));
    assert!(with(&|m| m.fake_name = Some("m/data/1".into())).contains("contradict"));
    assert!(with(&|m| m.fake_header = Some(0)).contains("contradict"));
    assert!(with(&|m| m.fake_header = Some(u32::MAX - 1)).contains("outside"));
    assert!(with(&|m| m.fake_header = Some(u32::MAX)).contains("zip64"));
    assert!(with(&|m| m.fake_size = Some(1 << 30)).contains("outside"));
    let mut wide = 1u16.to_le_bytes().to_vec();
    wide.extend(8u16.to_le_bytes());
    wide.extend(u64::MAX.to_le_bytes());
    assert!(with(&|m| (m.fake_header, m.extra) = (Some(u32::MAX), wide.clone())).contains("outside"));
    // The first member swallows the second.
    let mut members = base.clone();
    members[0].fake_size = Some(members[0].data.len() as u32 + 60);
    assert!(zip_refusal(&members).contains("overlap"));

    let root = |name: &str| zip_refusal(&[member("m/data.pkl", &pickle), member(name, b"x")]);
    assert!(root("m/constants.pkl").contains("TorchScript"));
    assert!(root("m/code/model.py").contains("TorchScript"));
    let script = Member { method: 8, ..member("m/code/model.py", b"x") };
    assert!(zip_refusal(&[member("m/data.pkl", &pickle), script]).contains("TorchScript"));
    assert!(root("n/data.pkl").contains("more than one"));
    assert!(zip_refusal(&[member("m/byteorder", b"big"), base[0].clone()]).contains("little-endian"));
    assert!(zip_refusal(&[member("word/document.xml", b"")]).contains("not a PyTorch checkpoint"));

    let mut appended = zip(&base);
    appended.push(0);
    assert!(read(appended).unwrap_err().to_string().contains("end record"));
    for (count, size, start) in [(u16::MAX, 0, 0), (1, u32::MAX, u32::MAX), (0, 5, 0), (1, 0, 4)] {
        let mut file = b"PK\x03\x04".to_vec();
        end(&mut file, count, size, start);
        assert!(read(file).is_err());
    }
}

#[test]
fn a_zip64_record_cannot_overflow() {
    let directory_at = zip(&[member("m/data.pkl", b"x")]).len() - 22;
    let mut base = zip(&[member("m/data.pkl", b"x")]);
    base.truncate(directory_at);
    for value in [u64::MAX, u64::MAX - 12, 1 << 63, 1 << 32, 45] {
        for field in [4, 24, 32, 40, 48] {
            let mut record = 0x0606_4b50u32.to_le_bytes().to_vec();
            record.extend(44u64.to_le_bytes());
            record.extend([0; 12]);
            for v in [1u64, 1, 56, 0] {
                record.extend(v.to_le_bytes());
            }
            record[field..field + 8].copy_from_slice(&value.to_le_bytes());
            let mut file = base.clone();
            file.extend(record);
            file.extend(0x0706_4b50u32.to_le_bytes());
            file.extend([0; 4]);
            file.extend((directory_at as u64).to_le_bytes());
            file.extend(1u32.to_le_bytes());
            end(&mut file, u16::MAX, u32::MAX, u32::MAX);
            assert!(read(file).is_err());
        }
    }
}

/// An archive with every kind of value that this reader knows.
fn rich_archive() -> Vec<u8> {
    let pickle = Pickle::new()
        .op(b"}(")
        .text("epoch")
        .op(b"K\x03")
        .text("state_dict")
        .global("collections", "OrderedDict")
        .op(b")R(")
        .text("a")
        .tensor("0", 6, (0, &[2, 3], &[3, 1]))
        .text("b")
        .tensor("0", 6, (0, &[3, 2], &[1, 3]))
        .text("extra")
        .op(b"](G\x3f\xf0\x00\x00\x00\x00\x00\x00\x88N\x8c\x01ze")
        .op(b"u}b")
        .op(b"u")
        .stop();
    archive(&pickle, &[("0", &floats(6))])
}

fn safetensors_file() -> Vec<u8> {
    let tensors = BTreeMap::from([
        ("a".to_string(), Tensor::from_f32(vec![2, 3], &[0.5; 6]).unwrap()),
        ("b".to_string(), Tensor::from_i8(vec![5], &[1; 5]).unwrap()),
    ]);
    safetensors::write(&tensors).unwrap()
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let whole = rich_archive();
    let d = read(whole.clone()).unwrap();
    assert_eq!((d.tensors.len(), d.skipped), (2, vec!["epoch".to_string(), "extra".to_string()]));
    for n in 0..whole.len() {
        assert!(read(whole[..n].to_vec()).is_err(), "cut at {n}");
    }
    let whole = safetensors_file();
    for n in 0..whole.len() {
        assert!(safetensors::read_bytes(&Bytes::from(whole[..n].to_vec())).is_err(), "cut at {n}");
    }
}

/// Flips bytes of `whole` at random; every variant has to be answered, quickly.
fn shake(whole: &[u8], seed: u64, answer: impl Fn(Bytes)) {
    let mut noise = Noise(seed);
    let started = Instant::now();
    for _ in 0..2000 {
        let mut file = whole.to_vec();
        for _ in 0..1 + noise.below(4) {
            let at = noise.below(file.len());
            file[at] = match noise.below(3) {
                0 => noise.next() as u8,
                1 => file[at] ^ (1 << noise.below(8)),
                _ => [0, 1, 0x7f, 0x80, 0xff][noise.below(5)],
            };
        }
        answer(Bytes::from(file));
    }
    assert!(started.elapsed() < Duration::from_secs(60), "took {:?}", started.elapsed());
}

#[test]
fn shaken_files_are_answered() {
    shake(&rich_archive(), 0x9E37_79B9_7F4A_7C15, |f| {
        if let Ok(d) = torch::read_bytes(&f) {
            for t in d.tensors.values() {
                t.to_f32().ok();
                t.first_non_finite();
            }
        }
    });
    shake(&safetensors_file(), 0xD1B5_4A32_D192_ED03, |f| {
        safetensors::read_bytes(&f).ok();
    });
    // The pickle alone, so that more of the noise reaches the machine.
    let whole = rich_archive();
    let from = whole.windows(3).position(|w| w == b"\x80\x02}").unwrap();
    let to = whole.windows(4).position(|w| w == b"u}bu").unwrap() + 5;
    shake(&whole[from..to], 0xA076_1D64_78BD_642F, |f| {
        torch::vm::run(&f).ok();
    });
}

#[test]
fn the_zip_crate_sees_the_same_members() {
    let file = rich_archive();
    let theirs = zip::ZipArchive::new(std::io::Cursor::new(&file)).unwrap();
    let mut names: Vec<&str> = theirs.file_names().collect();
    names.sort_unstable();
    let ours = torch::zip::Archive::open(&Bytes::from(file.clone())).unwrap();
    assert_eq!(ours.names().collect::<Vec<_>>(), names);
}
