//! The looking reader on hostile files: nothing is executed, time and memory stay bounded, and what only
//! code has a reason to mention is named.

mod common;

use common::*;
use qberta_kernels::mapped::Bytes;
use qberta_store::torch::inspect::{Entry, TorchFile, inspect_bytes};
use std::time::{Duration, Instant};

fn look(file: Vec<u8>) -> qberta_model::Result<TorchFile> {
    let started = Instant::now();
    let read = inspect_bytes(&Bytes::from(file));
    assert!(started.elapsed() < Duration::from_secs(20), "took {:?}", started.elapsed());
    read
}

fn refused(pickle: Vec<u8>) -> String {
    let read = look(archive(&pickle, &[("0", &floats(6))])).unwrap();
    read.refused.expect("a hostile pickle was taken for a model").to_string()
}

#[test]
fn code_is_named_and_not_run() {
    let call = |m: &str, n: &str| Pickle::new().global(m, n).text("echo owned").op(b"\x85R.").0;
    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("torch.hub", "load"),
        ("transformers", "pipeline"),
        ("importlib", "import_module"),
        ("collections", "OrderedDict.fromkeys"),
        ("anything.at.all", "Class"),
    ] {
        assert!(refused(call(module, name)).contains(&format!("would execute {module}.{name}")));
    }
    // A hostile name that is only mentioned is refused as well.
    assert!(refused(Pickle::new().global("os", "system").op(b".").0).contains("os.system"));
    // A call of what a call returned.
    let chained = Pickle::new().global("torch.nn", "Module").op(b")R)R").global("nt", "system").op(b"0.").0;
    assert!(look(archive(&chained, &[])).is_err(), "POP is no opcode that torch emits");
}

#[test]
fn modules_are_unfolded_and_bounded() {
    // class, (), NEWOBJ, {"_modules": {"a": <a tensor>}}, BUILD
    let one = Pickle::new()
        .global("my.models", "Net")
        .op(b")\x81}(")
        .text("weight")
        .tensor("0", 6, (0, &[2, 3], &[3, 1]))
        .text("other")
        .op(b"Nub.")
        .0;
    let read = look(archive(&one, &[("0", &floats(6))])).unwrap();
    assert!(read.refused.is_none());
    assert_eq!(read.modules[""], "my.models.Net");
    assert!(read.entries.contains_key("weight"));

    // Each module holds the one before under two names: 2^40 paths, 40 nodes.
    let mut doubling = Pickle::new().global("m", "N").op(b"q\x01)\x81q\x00");
    for _ in 0..40 {
        doubling = doubling.op(b"h\x01)\x81}(").text("a").op(b"h\x00").text("b").op(b"h\x00ubq\x00");
    }
    // The objects in between stay on the stack, so they are collected.
    let pickle = [&b"\x80\x02("[..], &doubling.0[2..], b"l"].concat();
    assert!(look(archive(&pickle, &[])).is_err());
    let mut nested = Pickle::new().op(b"(").op(&doubling.0[2..]).op(b"tq\x02").op(b"h\x01)\x81}(");
    nested = nested.text("last").op(b"h\x00ub\x86.");
    let error = look(archive(&nested.0, &[]));
    assert!(error.is_ok() || error.unwrap_err().to_string().contains("too"));

    // An object that is its own state.
    let cycle = Pickle::new().global("m", "N").op(b")\x81q\x00}").text("me").op(b"h\x00sb.").0;
    assert!(look(archive(&cycle, &[])).unwrap_err().to_string().contains("contains itself"));
    let deep = Pickle::new().op(b")").op(&b"\x85".repeat(1_000_000)).stop();
    assert!(look(archive(&deep, &[])).unwrap_err().to_string().contains("nests too deeply"));
}

#[test]
fn sharing_cannot_unfold_without_end() {
    // A list of objects first, so that the stack ends with the last one alone.
    let mut p = Pickle::new().op(b"]").global("m", "N").op(b"q\x01)\x81q\x00a");
    for _ in 0..40 {
        p = p.op(b"h\x01)\x81}(").text("a").op(b"h\x00").text("b").op(b"h\x00ubq\x00a");
    }
    // {"kept": [...], "model": object}
    let pickle =
        [&b"\x80\x02}("[..], b"X\x04\x00\x00\x00kept", &p.0[2..], b"X\x05\x00\x00\x00modelh\x00u."].concat();
    let error = look(archive(&pickle, &[])).unwrap_err().to_string();
    assert!(error.contains("too many values") || error.contains("too long altogether"), "{error}");
}

#[test]
fn quantized_tensors_that_lie_are_refused() {
    let q = |quantizer: &dyn Fn(Pickle) -> Pickle, storage: &str| {
        let p = Pickle::new().op(b"}").text("w").global("torch._utils", "_rebuild_qtensor").op(b"((");
        let p = p.text("storage").global("torch", storage).text("0").text("cpu").int(24).op(b"tQ");
        let p = p.int(0).ints(&[4, 6]).ints(&[6, 1]);
        quantizer(p).op(b"\x89}tRs.").0
    };
    let per_tensor = |p: Pickle| {
        p.global("torch", "per_tensor_affine").op(b"G").op(&0.5f64.to_be_bytes()).int(0).op(b"\x87")
    };
    let read = look(archive(&q(&per_tensor, "QInt8Storage"), &[("0", &[3; 24])])).unwrap();
    let qberta_store::torch::Entry::Quantized(w) = &read.entries["w"] else { panic!("{:?}", read.entries) };
    assert_eq!(w.dequantize(), [1.5; 24]);
    // Three scales for four rows.
    let few = |p: Pickle| {
        let p = p.op(b"(").global("torch", "per_channel_affine");
        p.tensor("1", 3, (0, &[3], &[1])).tensor("1", 3, (0, &[3], &[1])).int(0).op(b"t")
    };
    let e = look(archive(&q(&few, "QInt8Storage"), &[("0", &[3; 24]), ("1", &floats(3))])).unwrap_err();
    assert!(e.to_string().contains("wrong number of scales"), "{e}");
    // Codes of four bits fill half the bytes.
    let read = look(archive(&q(&per_tensor, "QUInt4x2Storage"), &[("0", &[0x21; 24])]));
    assert!(read.unwrap_err().to_string().contains("four bits"));
    // A per-channel scheme with one number.
    let odd = |p: Pickle| p.global("torch", "per_channel_affine").int(1).int(0).op(b"\x87");
    assert!(look(archive(&q(&odd, "QInt8Storage"), &[("0", &[3; 24])])).is_err());
    // The same file is no state dict of plain tensors.
    let plain = qberta_store::torch::read_bytes(&Bytes::from(archive(
        &q(&per_tensor, "QInt8Storage"),
        &[("0", &[3; 24])],
    )));
    assert!(plain.unwrap_err().advice().unwrap().contains("qberta doctor"));
}

/// A quantized convolution as torch pickles it: fifteen values, of which only the last five matter here.
fn convolution(class: &str, before: usize, state: impl Fn(Pickle) -> Pickle) -> Pickle {
    let p = Pickle::new().op(b"}").text("c").global("torch.ao.nn.quantized.modules.conv", class);
    state(p.op(b")\x81(").op(&b"N".repeat(before))).op(b"tbs")
}

#[test]
fn a_quantized_convolution_is_read_from_its_tuple() {
    let weight = |p: Pickle| p.tensor("0", 6, (0, &[1, 2, 3], &[6, 3, 1]));
    let half = [&b"G"[..], &0.5f64.to_be_bytes(), b"K\x07"].concat();
    let open = |p: Pickle| look(archive(&p.stop(), &[("0", &floats(6))]));
    let whole =
        convolution("Conv1d", 10, |p| weight(p).tensor("0", 6, (1, &[1], &[1])).op(&half).op(b"\x89"));
    let read = open(whole).unwrap();
    let shape = |name: &str| match &read.entries[name] {
        Entry::Tensor { tensor, .. } => tensor.shape().to_vec(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!((shape("c.weight"), shape("c.bias")), (vec![1, 2, 3], vec![1]));
    assert!(matches!(read.entries["c.scale"], Entry::Scalar(s) if s == 0.5), "{:?}", read.entries);
    assert!(matches!(read.entries["c.zero_point"], Entry::Scalar(z) if z == 7.0), "{:?}", read.entries);
    assert_eq!(read.entries.len(), 4);
    // Without a bias there is none.
    let bare = open(convolution("ConvReLU1d", 10, |p| weight(p).op(b"N").op(&half).op(b"\x89"))).unwrap();
    assert!(bare.entries.contains_key("c.weight") && !bare.entries.contains_key("c.bias"));
    // Of another length, or another class, nobody knows which value is which: named, not guessed.
    for (class, before) in [("Conv1d", 9), ("Conv1d", 11), ("LSTM", 10)] {
        let p = convolution(class, before, |p| weight(p).op(b"N").op(&half).op(b"\x89"));
        let read = open(p).unwrap();
        assert_eq!(read.entries.len(), 1, "{class} {before}: {:?}", read.entries);
        let Entry::Other(what) = &read.entries["c"] else { panic!("{:?}", read.entries) };
        assert!(what.contains(class) && what.contains("cannot be read"), "{what}");
    }
    // Lies are caught as everywhere.
    let outside = convolution("Conv1d", 10, |p| p.tensor("0", 6, (0, &[1 << 40], &[1])).op(b"NNN\x89"));
    assert!(open(outside).unwrap_err().to_string().contains("outside its storage"));
}

#[test]
fn archives_that_lie_are_refused() {
    let mut bomb = member("m/data.pkl", &[0; 64]);
    bomb.method = 8;
    assert!(look(zip(&[bomb])).unwrap_err().to_string().contains("compressed"));
    let mut twin = member("m/data/1", &floats(6));
    twin.fake_header = Some(0);
    assert!(look(zip(&[member("m/data.pkl", b"\x80\x02}."), twin])).is_err());
    let real = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../testdata/doctor/dynamic-legacy/quantized_model.pt"
    ));
    let real = real.unwrap();
    for n in (0..real.len()).step_by(53) {
        assert!(look(real[..n].to_vec()).is_err(), "cut at {n}");
    }
}

#[test]
fn shaken_files_are_answered() {
    for case in ["dynamic-legacy", "module", "dynamic-embedding-4bit", "torchscript-script"] {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/doctor").join(case);
        let file = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().path())
            .find(|p| p.extension().is_some_and(|e| e == "pt"));
        let whole = std::fs::read(file.unwrap()).unwrap();
        let mut noise = Noise(0x2545_F491_4F6C_DD1D);
        for _ in 0..1500 {
            let mut file = whole.clone();
            for _ in 0..1 + noise.below(3) {
                let at = noise.below(file.len().min(16_000));
                file[at] = noise.next() as u8;
            }
            let _ = look(file);
        }
    }
}

#[test]
fn names_cost_nothing_and_are_paid_for() {
    // One storage of a megabyte under a hundred names.
    let mut p = Pickle::new().op(b"}(").text("w").tensor("0", 1 << 18, (0, &[1 << 18], &[1])).op(b"q\x00");
    for i in 0..100 {
        p = p.text(&format!("w{i}")).op(b"h\x00");
    }
    let error = look(archive(&p.op(b"u.").0, &[("0", &floats(1 << 18))])).unwrap_err();
    assert!(error.to_string().contains("over and over"), "{error}");
    // Many names of nothing.
    let mut p = Pickle::new().op(b"}").text("w").tensor("0", 6, (0, &[0], &[1])).op(b"q\x00s");
    for part in 0..600 {
        p = p.op(b"(");
        for i in 0..500 {
            p = p.text(&format!("{part}.{i}")).op(b"h\x00");
        }
        p = p.op(b"u");
    }
    let error = look(archive(&p.op(b".").0, &[("0", &floats(6))])).unwrap_err();
    assert!(error.to_string().contains("too many values"), "{error}");
}

#[test]
fn a_checksum_that_does_not_match_names_what_it_covers() {
    let file = archive(&one(6, (0, &[2, 3], &[3, 1])), &[("0", &floats(6))]);
    // The builder keeps no checksums (0), as torch can be told to; so nothing is compared.
    assert!(look(file.clone()).unwrap().damage.is_empty());
    // The directory entry of the storage: signature, ..., checksum at byte 16, ..., name at byte 46.
    let name = file.windows(8).rposition(|w| w == b"m/data/0").unwrap();
    let mut wrong = file;
    wrong[name - 30..name - 26].copy_from_slice(&7u32.to_le_bytes());
    let read = look(wrong).unwrap();
    assert_eq!(read.damage.len(), 1);
    assert_eq!((read.damage[0].member.name.as_str(), read.damage[0].member.recorded), ("m/data/0", 7));
    assert!(read.damage[0].entries.contains("w"));
}

#[test]
fn the_one_dict_of_weights_is_found_under_any_key() {
    let tensor =
        |p: Pickle, key: &str| p.text(key).op(b"}").text("w").tensor("0", 6, (0, &[6], &[1])).op(b"s");
    let one = tensor(Pickle::new().op(b"}("), "model_ema").text("epoch").op(b"K\x03u.").0;
    let read = look(archive(&one, &[("0", &floats(6))])).unwrap();
    assert_eq!(read.root, qberta_store::torch::inspect::Root::Wrapped("model_ema".into()));
    assert!(read.entries.contains_key("w"));
    let two = tensor(tensor(Pickle::new().op(b"}("), "generator"), "critic").op(b"u.").0;
    assert!(!look(archive(&two, &[("0", &floats(6))])).unwrap().entries.contains_key("w"));
}

#[test]
fn streams_of_the_old_format_that_lie_are_refused() {
    let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00.";
    let stream = |keys: &[&str], storages: &[(u64, &[u8])]| {
        let listed = keys.iter().fold(Pickle::new().op(b"]("), |p, k| p.text(k)).op(b"e.").0;
        let mut file = [&head[..], &one(6, (0, &[2, 3], &[3, 1])), &listed].concat();
        for (count, bytes) in storages {
            file.extend(count.to_le_bytes());
            file.extend(*bytes);
        }
        file
    };
    let f = floats(6);
    assert!(look(stream(&["0"], &[(6, &f)])).unwrap().entries.contains_key("w"));
    let refused = |file: Vec<u8>| look(file).expect_err("a stream that lies was accepted").to_string();
    for (keys, storages, says) in [
        (&["0"][..], &[(1 << 63, &f[..])][..], "cut off"),
        (&["0"], &[(u64::MAX / 4, &f)], "cut off"),
        (&["0"], &[(7, &f)], "cut off"),
        (&["0"], &[(3, &f[..12])], "wrong size"),
        (&["0"], &[(3, &f)], "after its last storage"),
        (&["0", "0"], &[(6, &f), (6, &f)], "same storage twice"),
        (&["7"], &[(6, &f)], "nothing views"),
        (&[], &[], "missing"),
    ] {
        let error = refused(stream(keys, storages));
        assert!(error.contains(says), "{keys:?}: {error}");
    }
    let whole = stream(&["0"], &[(6, &f)]);
    for n in 0..whole.len() {
        assert!(look(whole[..n].to_vec()).is_err(), "cut at {n}");
    }
}

#[test]
fn every_way_to_reach_code_is_named_or_refused() {
    let p = Pickle::new;
    // Wrapped in a call that looks like an object, and by a dotted name of an allowed module.
    let wrapped = p().global("functools", "partial").global("os", "system").op(b"\x85R.").0;
    assert!(refused(wrapped).contains("os.system"));
    for (module, name) in [("torch", "os.system"), ("transformers", "utils.hub.os.system")] {
        let dotted = p().text(module).text(name).op(b"\x93").text("id").op(b"\x85R.").0;
        assert!(refused(dotted).contains(&format!("{module}.{name}")));
    }
    let hidden = p().global("collections", "OrderedDict").op(b"]").text("k").global("runpy", "run_path");
    assert!(refused(hidden.text("x.py").op(b"\x85R\x86a\x85R.").0).contains("runpy.run_path"));
    // Opcodes by which only code is built: OBJ, INST, EXT, NEWOBJ_EX, buffers of protocol 5, text of protocol 0.
    for code in [
        &b"(cos\nsystem\nX\x02\x00\x00\x00ido."[..],
        b"(X\x02\x00\x00\x00idios\nsystem\n.",
        b"\x82\x01.",
        b"\x83\x01\x00.",
        b"\x84\x01\x00\x00\x00.",
        b"csubprocess\nPopen\n)}\x92.",
        b"\x97.",
        b"\x97\x98.",
        b"S'id'\n.",
        b"I1\n.",
        b"P0\n.",
    ] {
        assert!(look(archive(&p().op(code).0, &[])).is_err(), "{code:x?}");
    }
}

#[test]
fn a_memo_of_any_size_is_answered_quickly() {
    // Ten million slots, in order and in reverse, and slots far apart.
    let put = |order: &mut dyn Iterator<Item = u32>| {
        order.fold(Pickle::new().op(b"N"), |p, slot| p.op(b"r").op(&slot.to_le_bytes())).op(b".").0
    };
    let started = Instant::now();
    for pickle in [put(&mut (0..5_000_000)), put(&mut (0..5_000_000).rev())] {
        assert!(look(archive(&pickle, &[])).unwrap_err().to_string().contains("too many values"));
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    // What was stored last under a slot is what comes back, and MEMOIZE counts slots.
    let recalled = |stored: Pickle| {
        // {"kept": (...), <what slot 1 holds>: tensor}
        let p = Pickle::new().op(b"}(").text("kept").op(b"(").op(&stored.0[2..]).op(b"th\x01");
        let p = p.tensor("0", 6, (0, &[6], &[1])).op(b"u.");
        look(archive(&p.0, &[("0", &floats(6))])).unwrap().entries
    };
    let p = Pickle::new;
    let again = p().text("a").op(b"q\x01").text("b").op(b"q\x00").text("c").op(b"q\x01");
    assert!(recalled(again).contains_key("c"));
    let early = p().text("a").op(b"q\x01").text("b").op(b"q\x00").text("c").op(b"q\x02");
    assert!(recalled(early).contains_key("a"));
    assert!(
        recalled(p().text("a").op(b"\x94").text("b").op(b"\x94").text("c").op(b"\x94")).contains_key("b")
    );
}
