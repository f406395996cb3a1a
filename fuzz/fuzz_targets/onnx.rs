#![no_main]
libfuzzer_sys::fuzz_target!(init: qberta_fuzz::init(), |data: &[u8]| qberta_fuzz::guard(qberta_fuzz::onnx, data));
