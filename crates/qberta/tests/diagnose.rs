//! A diagnosis names the place where a planted fault is, and says nothing where nothing differs.

mod common;

use common::*;
use qberta::Row;
use qberta::kernels::{FixedGrid, Matrix, PackedF32, PackedI8, RowGrid, Shaping, quantize_weight_rows};
use qberta::model::{Batch, Error, InputGrid, Linear, Model, Native, Sequence, Site, Slot, Weights, forward};
use qberta::store::Source;
use qberta::toolkit::diagnose::{Diagnosis, Stage, diagnose};
use qberta::{Recipe, Request, quantize};

/// A golden checkpoint, the dynamic artefact of it and its token rows, one example a row.
fn models(case: &str) -> (Model, Model, Vec<Vec<Sequence>>) {
    let record = golden_cases().into_iter().find(|(c, _)| c == case).unwrap().1;
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (golden(case), dir.path().join("int8"));
    let recipe = Recipe::new("dynamic", &[]).unwrap();
    let task = Some(task(&record));
    quantize(&Request { model: &model, out: &out, recipe: &recipe, task }, &context(), &()).unwrap();
    let load = |dir| Source::open(dir, task).unwrap().load(&context()).unwrap().model;
    let examples = expected(&model).into_iter().map(|(row, _)| match row {
        Row::Tokens(s) => vec![s],
        Row::TokenChoices(all) => all,
        other => panic!("{case}: a golden row is {}", other.kind()),
    });
    let examples = examples.collect();
    (load(&model), load(&out), examples)
}

fn found(float: &Model, other: &Model, examples: &[Vec<Sequence>]) -> Diagnosis {
    diagnose(float, other, examples, &context(), &()).unwrap()
}

/// `model` with some of its weights changed.
fn changed(model: &Model, change: impl FnOnce(&mut Weights)) -> Model {
    let mut weights = model.weights().clone();
    change(&mut weights);
    Model::new(model.architecture().clone(), weights, &context()).unwrap()
}

/// The int8 linear at `site` with every scale multiplied.
fn rescaled(weights: &mut Weights, site: Site, factor: f32) {
    let Some(Linear::Int8 { weight, .. }) = weights.linears.get_mut(&site) else { panic!("{site} is int8") };
    let scale: Vec<f32> = weight.scale().iter().map(|s| s * factor).collect();
    *weight = PackedI8::pack(&weight.codes(), &scale, weight.out(), weight.inp()).unwrap();
}

#[test]
fn a_model_against_itself_has_no_error_anywhere() {
    for case in ["v3-sequence", "v1-talking-head", "v3-conv3", "bert-token", "v3-multiple-choice"] {
        let (float, _, examples) = models(case);
        let report = found(&float, &float, &examples);
        assert!(report.ranking.is_empty() && report.flips.is_empty(), "{case}: {:?}", report.ranking);
        for place in &report.places {
            let errors = [Some(place.accumulated), place.arriving, place.made];
            assert!(
                errors.iter().flatten().all(|e| e.sqnr_db.is_none() && e.max == 0.0),
                "{case} {}",
                place.place
            );
        }
    }
}

#[test]
fn both_runs_are_the_models_own() {
    // The outputs compared are bit for bit what each model answers alone.
    for case in ["v3-sequence", "v1-sequence", "v3-conv3", "electra-sequence", "v3-qa"] {
        let (float, int8, examples) = models(case);
        let report = found(&float, &int8, &examples);
        let mut worst = 0.0f64;
        for s in examples.iter().flatten() {
            let run = |model: &Model| {
                let batch = Batch::new(model.architecture(), std::slice::from_ref(s)).unwrap();
                forward(model.architecture(), &mut Native::new(model, &context()), &batch)
            };
            let (a, b) = (run(&float), run(&int8));
            for (x, y) in a.as_slice().iter().zip(b.as_slice()) {
                worst = worst.max((f64::from(*x) - f64::from(*y)).abs());
            }
        }
        assert_eq!(report.outputs.max, worst, "{case}");
        assert_eq!(report.examples, examples.len());
    }
}

#[test]
fn a_scale_wrong_by_four_is_named_first_wherever_it_is() {
    for case in ["v3-sequence", "v1-sequence", "bert-sequence"] {
        let (float, int8, examples) = models(case);
        let sites: Vec<Site> = int8
            .weights()
            .linears
            .iter()
            .filter(|(_, l)| matches!(l, Linear::Int8 { .. }))
            .map(|(s, _)| *s)
            // The relative tables of v1 run inside attention.
            .filter(|s| !matches!(s, Site::Layer(_, Slot::PositionKey | Slot::PositionQuery)))
            .collect();
        assert!(sites.len() >= 12, "{case}: {} int8 linears", sites.len());
        for site in sites {
            let broken = changed(&int8, |w| rescaled(w, site, 4.0));
            let report = found(&float, &broken, &examples);
            assert_eq!(report.ranking[0], site.to_string(), "{case}: {:?}", &report.ranking[..3]);
            let place = report.place(&site.to_string()).unwrap();
            // y is four times too large: the noise is nine times the signal, less what the bias adds.
            let made = place.made.unwrap().sqnr_db.unwrap();
            assert!((-10.5..3.0).contains(&made), "{case} {site}: {made} dB");
            // The fault is in the weights, not in what arrives or is clipped.
            let by_weights = place.made_by_weights.unwrap().sqnr_db.unwrap();
            assert!((made - by_weights).abs() < 1.0, "{case} {site}: {made} and {by_weights}");
        }
    }
}

/// `float` with channel `channel` of what the attention output of layer `layer` reads 100 times as large, and
/// its weights a hundredth: the same function, hard to quantize.
fn with_outlier(float: &Model, layer: usize, channel: usize) -> Model {
    changed(float, |w| {
        let (value, output) = (Site::layer(layer, Slot::Value), Site::layer(layer, Slot::AttentionOutput));
        let mut edit = |site: Site, factor: &dyn Fn(usize, usize) -> f32| {
            let Some(Linear::F32 { weight, bias }) = w.linears.get_mut(&site) else {
                panic!("{site} is float")
            };
            let (out, inp) = (weight.out(), weight.inp());
            let mut values = weight.unpack();
            for (i, v) in values.iter_mut().enumerate() {
                *v *= factor(i / inp, i % inp);
            }
            *weight = PackedF32::pack(&values, out, inp);
            bias.iter_mut().flatten().enumerate().for_each(|(o, b)| *b *= factor(o, inp));
        };
        edit(value, &|out, _| if out == channel { 100.0 } else { 1.0 });
        edit(output, &|_, inp| if inp == channel { 0.01 } else { 1.0 });
    })
}

/// Every encoder linear of `float` as plain dynamic int8, without extra columns for outliers.
fn plain_int8(float: &Model) -> Model {
    changed(float, |w| {
        for (site, linear) in &mut w.linears {
            let Linear::F32 { weight, bias } = &*linear else { panic!("{site} is float") };
            if matches!(site, Site::Layer(..)) {
                let (out, inp) = (weight.out(), weight.inp());
                let (codes, scale) = quantize_weight_rows(&weight.unpack(), out, inp);
                *linear = Linear::Int8 {
                    weight: PackedI8::pack(&codes, &scale, out, inp).unwrap(),
                    bias: bias.clone(),
                    input: InputGrid::Row(RowGrid::Asymmetric),
                    shaping: Shaping::default(),
                };
            }
        }
    })
}

#[test]
fn a_channel_a_hundred_times_too_large_is_named_with_its_place() {
    let (float, _, examples) = models("v3-sequence");
    let clean = found(&float, &plain_int8(&float), &examples);
    for (layer, channel) in [(0, 0), (0, 17), (1, 5), (1, 30)] {
        let float = with_outlier(&float, layer, channel);
        let report = found(&float, &plain_int8(&float), &examples);
        let name = format!("layer.{layer}.attention_output");
        assert_eq!(report.ranking[0], name, "{:?}", &report.ranking[..4]);
        let place = report.place(&name).unwrap();
        let worst = place.outlier_channels[0];
        assert_eq!(worst.channel, channel);
        // The same function without the outlier makes far less of an error.
        let usual = clean.place(&name).unwrap();
        assert!(place.made.unwrap().rms > 5.0 * usual.made.unwrap().rms, "{:?} {:?}", place.made, usual.made);
        assert!(worst.ratio > 30.0 && usual.outlier_channels[0].ratio < 10.0, "{worst:?}");
    }
}

#[test]
fn clipping_is_told_from_rounding() {
    let (float, int8, examples) = models("v3-sequence");
    let site = Site::Layer(0, Slot::FfnUp);
    let with_range = |reach: f32| {
        changed(&int8, |w| {
            let Some(Linear::Int8 { input, .. }) = w.linears.get_mut(&site) else { panic!("int8") };
            *input = InputGrid::Fixed(FixedGrid::over(-reach, reach).unwrap());
        })
    };
    let place = |reach: f32| {
        let report = found(&float, &with_range(reach), &examples);
        report.place("layer.0.ffn_up").unwrap().clone()
    };
    // A range that holds everything: nothing is clipped, and rounding is all there is.
    let wide = place(100.0);
    assert_eq!((wide.clipped, wide.made_by_clipping.unwrap().sqnr_db), (Some(0.0), None));
    assert_eq!(wide.made_by_rounding.unwrap().sqnr_db, wide.made.unwrap().sqnr_db);
    // A range that holds little: the reverse.
    let narrow = place(0.3);
    assert!(narrow.clipped.unwrap() > 0.2, "{:?}", narrow.clipped);
    let (clipping, rounding) = (narrow.made_by_clipping.unwrap(), narrow.made_by_rounding.unwrap());
    assert!(clipping.rms > 10.0 * rounding.rms, "{clipping:?} {rounding:?}");
    // A dynamic input has no range to leave.
    let report = found(&float, &int8, &examples);
    assert!(report.places.iter().all(|p| p.clipped.is_none() && p.made_by_clipping.is_none()));
}

#[test]
fn errors_arrive_where_they_were_made_before() {
    let (float, int8, examples) = models("v3-sequence");
    let broken = changed(&int8, |w| {
        // Everything float but one linear, which is wrong.
        *w = float.weights().clone();
        w.linears.insert(
            Site::Layer(1, Slot::Value),
            int8.weights().linears[&Site::Layer(1, Slot::Value)].clone(),
        );
        rescaled(w, Site::Layer(1, Slot::Value), 4.0);
    });
    let report = found(&float, &broken, &examples);
    assert_eq!(report.ranking, ["layer.1.value"]);
    let at = report.places.iter().position(|p| p.place == "layer.1.value").unwrap();
    for (i, place) in report.places.iter().enumerate() {
        if i < at {
            assert_eq!(place.accumulated.sqnr_db, None, "{} comes before the fault", place.place);
        }
        if i != at {
            assert!(place.made.is_none_or(|m| m.sqnr_db.is_none()), "{} makes nothing", place.place);
        }
    }
    // Scores do not depend on values; what they weigh does.
    for term in ["scores.c2c", "scores.c2p", "scores.p2c", "softmax"] {
        assert_eq!(report.place(&format!("layer.1.{term}")).unwrap().accumulated.sqnr_db, None, "{term}");
    }
    for place in ["layer.1.attention", "layer.1.attention_residual", "layer.1.ffn_norm", "head.output"] {
        assert!(report.place(place).unwrap().accumulated.sqnr_db.is_some_and(|db| db < 30.0), "{place}");
    }
}

#[test]
fn each_score_term_shows_its_own_error() {
    let (float, int8, examples) = models("v3-not-shared");
    let broken = |slot| {
        let model = changed(&int8, |w| {
            *w = float.weights().clone();
            let site = Site::Layer(0, slot);
            w.linears.insert(site, int8.weights().linears[&site].clone());
            rescaled(w, site, 2.0);
        });
        found(&float, &model, &examples)
    };
    let differs = |report: &Diagnosis, term: &str| {
        report.place(&format!("layer.0.{term}")).unwrap().accumulated.sqnr_db.is_some()
    };
    let cases = [
        (Slot::PositionKey, [false, true, false], "layer.0.attention"),
        (Slot::PositionQuery, [false, false, true], "layer.0.attention"),
        (Slot::Query, [true, true, false], "layer.0.query"),
        (Slot::Key, [true, false, true], "layer.0.key"),
    ];
    for (slot, terms, first) in cases {
        let report = broken(slot);
        let seen = ["scores.c2c", "scores.c2p", "scores.p2c"].map(|t| differs(&report, t));
        assert_eq!(seen, terms, "{slot:?}");
        assert!(differs(&report, "softmax") && differs(&report, "attention"), "{slot:?}");
        assert_eq!(report.ranking, [first], "{slot:?}");
    }
}

#[test]
fn changed_answers_are_traced_to_their_layer() {
    let (float, _, examples) = models("v3-sequence");
    // The second layer's output is turned around: whatever the head decided, it decides something else.
    let turned = changed(&float, |w| {
        let norm = w.norms.get_mut(&Site::Layer(1, Slot::FfnNorm)).unwrap();
        norm.weight.iter_mut().chain(&mut norm.bias).for_each(|v| *v = -*v);
    });
    let report = found(&float, &turned, &examples);
    assert!(report.decides && !report.flips.is_empty());
    for flip in &report.flips {
        assert_ne!(flip.float, flip.other);
        assert_eq!(flip.first, Some(Stage::Layer(1)));
        assert!(flip.margin >= 0.0 && 2.0 * flip.largest > flip.margin, "{flip:?}");
    }
    assert_eq!(report.first_flip, Some(Stage::Layer(1)));
    assert_eq!(report.ranking, ["layer.1.ffn_norm"]);
}

#[test]
fn models_that_cannot_be_compared_are_refused() {
    let (float, _, examples) = models("v3-sequence");
    let (other, _, _) = models("v3-token");
    let error: Error = diagnose(&float, &other, &examples, &context(), &()).unwrap_err();
    assert!(error.to_string().contains("token-classification"), "{error}");
    let error = diagnose(&float, &float, &[], &context(), &()).unwrap_err();
    assert!(error.to_string().contains("--data"), "{error}");
    let broken = changed(&float, |w| {
        w.norms.get_mut(&Site::EmbeddingNorm).unwrap().weight.fill(f32::NAN);
    });
    let error = diagnose(&float, &broken, &examples, &context(), &()).unwrap_err();
    assert!(error.to_string().contains("quantized model gave a value that is not finite"), "{error}");
}

#[test]
fn tokens_with_the_error_are_named() {
    let (float, int8, _) = models("v3-sequence");
    // One row of the word table is wrong.
    let width = float.architecture().embedding;
    let broken = changed(&int8, |w| {
        *w = float.weights().clone();
        let table = &w.tables[&Site::WordTable];
        let mut values = Matrix::zeros(table.rows(), width);
        for i in 0..table.rows() {
            table.read(i, values.row_mut(i));
        }
        values.row_mut(11).iter_mut().for_each(|v| *v = 1.0 - *v);
        let bytes: Vec<u8> = values.as_slice().iter().flat_map(|v| v.to_le_bytes()).collect();
        let format = qberta::model::FloatFormat::F32;
        let table = qberta::model::Table::float(values.rows(), width, format, bytes.into()).unwrap();
        w.tables.insert(Site::WordTable, table);
    });
    let examples: Vec<Vec<Sequence>> = (3..9).map(|i| vec![Sequence::of(vec![1, i, i + 6, 2])]).collect();
    let report = found(&float, &broken, &examples);
    let place = report.place("embedding.word").unwrap();
    assert_eq!(place.tokens.len(), 5);
    assert_eq!((place.tokens[0].id, place.tokens[0].share, place.tokens[0].rows), (11, 1.0, 1));
    let worst = &place.worst_tokens;
    assert_eq!(worst.len(), 1);
    assert_eq!((worst[0].example, worst[0].position, worst[0].id), (2, 2, 11));
}
