//! Measured against the long way round: whole models, whole networks.

use super::damage::damage;
use super::*;
use crate::shapes::Shape;
use qberta_kernels::{Context, Isa, Matrix};
use qberta_model::{Batch, Native, Sequence, forward};
use std::collections::BTreeMap;

fn context() -> Context {
    Context::new(Isa::best(), 1).unwrap()
}

fn palette(cx: &Context) -> Palette {
    let open = || Shape::named("v3-toy").unwrap().random(3, &());
    let choices =
        Choice::named(&["dynamic".into(), "weight-only".into(), "int8-attention".into()], false).unwrap();
    Palette::new(&open, choices, None, cx, &()).unwrap()
}

fn examples() -> Vec<Vec<Sequence>> {
    (0..5u32).map(|i| vec![Sequence::of((0..4 + 3 * i).map(|t| 1 + (7 * t + i) % 90).collect())]).collect()
}

fn outputs(palette: &Palette, selection: &[usize], example: &[Sequence], cx: &Context) -> Matrix {
    let model = palette.model(selection, cx).unwrap();
    let batch = Batch::new(model.architecture(), example).unwrap();
    forward(model.architecture(), &mut Native::new(&model, cx), &batch)
}

/// The damage of a selection to each example, by running whole models.
fn long_way(palette: &Palette, selection: &[usize], cx: &Context) -> Vec<f64> {
    let one = |e: &Vec<Sequence>| {
        let (a, b) = (outputs(palette, &palette.float(), e, cx), outputs(palette, selection, e, cx));
        damage(palette.architecture(), &a, &b, 0..a.rows())
    };
    examples().iter().map(one).collect()
}

fn measured(palette: &Palette, search: Search, cx: &Context) -> Damages {
    let mut damages = Damages::default();
    measure(palette, &examples(), search, &mut damages, cx, &(), &mut |_| Ok(())).unwrap();
    damages
}

#[test]
fn running_a_part_of_the_network_gives_the_damage_of_running_it_whole() {
    let cx = context();
    let palette = palette(&cx);
    let damages = measured(&palette, Search::Exhaustive, &cx);
    for (choice, known) in palette.choices.iter().enumerate().skip(1) {
        assert_eq!(damages.throughout[known.name], long_way(&palette, &palette.throughout(choice), &cx));
        for (u, unit) in palette.units.iter().enumerate() {
            let Some(offer) = unit.offers.iter().position(|o| o.choice == choice) else { continue };
            let mut alone = palette.float();
            alone[u] = offer;
            assert_eq!(
                damages.alone[&unit.name][known.name],
                long_way(&palette, &alone, &cx),
                "{}",
                unit.name
            );
            let mut without = palette.throughout(choice);
            without[u] = 0;
            assert_eq!(
                damages.without[&unit.name][known.name],
                long_way(&palette, &without, &cx),
                "{}",
                unit.name
            );
        }
    }
}

#[test]
fn fast_shares_out_what_a_layer_does_to_the_outputs() {
    let cx = context();
    let palette = palette(&cx);
    let damages = measured(&palette, Search::Fast, &cx);
    let alone = measured(&palette, Search::Alone, &cx);
    let weights = palette.units.iter().filter(|u| !u.is_attention());
    let scores = |d: &Damages| weights.clone().map(|u| d.score(&u.name, "dynamic")).collect::<Vec<_>>();
    assert!(scores(&damages).iter().all(|s| *s > 0.0));
    assert!(rank_correlation(&scores(&damages), &scores(&alone)).unwrap() > 0.6);
    // From the last layer on, and for a unit alone in its part of the network, nothing is shared out.
    let exact = palette.units.iter().filter(|u| u.stage == 0 || u.stage == palette.architecture().layers);
    for unit in exact {
        assert_eq!(damages.alone[&unit.name], alone.alone[&unit.name], "{}", unit.name);
    }
}

#[test]
fn an_interrupted_measurement_goes_on_to_the_same_figures() {
    let cx = context();
    let palette = palette(&cx);
    let whole = measured(&palette, Search::Fast, &cx);
    let mut part = Damages::default();
    measure(&palette, &examples()[..2], Search::Fast, &mut part, &cx, &(), &mut |_| Ok(())).unwrap();
    assert_eq!(part.examples, 2);
    let mut saved = 0;
    let subject = BTreeMap::from([("model".to_owned(), "a".to_owned())]);
    let mut state = State::new(subject.clone());
    state.damages = part;
    let mut read = State::parse(&state.bytes(), &subject, &palette, 5).unwrap();
    let mut save = |_: &Damages| {
        saved += 1;
        Ok(())
    };
    measure(&palette, &examples(), Search::Fast, &mut read.damages, &cx, &(), &mut save).unwrap();
    assert!(saved > 0);
    assert_eq!(read.damages, whole);
}

#[test]
fn a_state_of_something_else_is_refused_by_name() {
    let cx = context();
    let palette = palette(&cx);
    let subject = |model: &str| BTreeMap::from([("model".to_owned(), model.to_owned())]);
    let mut state = State::new(subject("a"));
    state.damages = measured(&palette, Search::Exhaustive, &cx);
    let inputs = [vec![Sequence::of(vec![1, 2, 3])]];
    let costs = costs(&palette, &inputs, &cx, &()).unwrap();
    assert!(palette.units.iter().all(|u| costs.of(&u.name, "float") > 0.0) && costs.rest > 0.0);
    state.timed = Some(Timed { on: "here".into(), costs });
    let refused = |bytes: &[u8], model: &str, examples: usize| {
        State::parse(bytes, &subject(model), &palette, examples).unwrap_err().to_string()
    };
    assert_eq!(State::parse(&state.bytes(), &subject("a"), &palette, 5).unwrap(), state);
    assert!(refused(&state.bytes(), "b", 5).contains("another model"));
    assert!(refused(&state.bytes(), "a", 4).contains("more examples"));
    let changed = |change: &dyn Fn(&mut State)| {
        let mut state = state.clone();
        change(&mut state);
        refused(&state.bytes(), "a", 5)
    };
    let unit = palette.units[2].name.clone();
    assert!(changed(&|s| drop(s.damages.alone.remove(&unit))).contains(&unit));
    assert!(
        changed(&|s| s.damages.alone.get_mut(&unit).unwrap().get_mut("dynamic").unwrap()[1] = -1.0)
            .contains(&unit)
    );
    assert!(changed(&|s| drop(s.damages.throughout.remove("dynamic"))).contains("damage of a choice"));
    assert!(changed(&|s| s.timed.as_mut().unwrap().costs.rest = 1e9).contains("time of a module"));
    assert!(
        changed(&|s| drop(s.timed.as_mut().unwrap().costs.units.remove(&unit))).contains("time of a module")
    );
    for text in ["", "[]", "{\"version\":1}", "not json", "\u{0}"] {
        assert!(refused(text.as_bytes(), "a", 5).contains("not a state"), "{text}");
    }
    let text = String::from_utf8(state.bytes()).unwrap();
    assert!(
        refused(text.replacen("\"version\":1", "\"version\":2", 1).as_bytes(), "a", 5)
            .contains("another version")
    );
    assert!(
        refused(text.replacen("\"version\"", "\"more\":1,\"version\"", 1).as_bytes(), "a", 5)
            .contains("not a state")
    );
}

#[test]
fn what_cannot_be_chosen_is_refused_by_name() {
    let named = |names: &[&str], data| {
        Choice::named(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(), data)
    };
    let names = |choices: Vec<Choice>| choices.iter().map(|c| c.name).collect::<Vec<_>>();
    assert_eq!(names(named(&[], false).unwrap()), ["float", "dynamic"]);
    assert_eq!(names(named(&[], true).unwrap()), ["float", "dynamic", "static"]);
    assert_eq!(names(named(&["weight-only"], false).unwrap()), ["float", "weight-only"]);
    assert!(named(&["static"], false).unwrap_err().to_string().contains("calibration"));
    assert!(named(&["int3"], false).unwrap_err().to_string().contains("weight-only"));
    assert!(named(&["float"], false).unwrap_err().to_string().contains("nothing to choose"));
    assert_eq!(CHOICES[0].decision, qberta_store::manifest::Decision::FLOAT);
}

#[test]
fn rank_correlation_is_spearmans() {
    let close = |a: Option<f64>, b: f64| (a.unwrap() - b).abs() < 1e-12;
    assert!(close(rank_correlation(&[1.0, 2.0, 9.0], &[0.1, 0.2, 0.3]), 1.0));
    assert!(close(rank_correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0));
    // scipy.stats.spearmanr([1, 2, 2, 4], [1, 3, 2, 4])
    assert!(close(rank_correlation(&[1.0, 2.0, 2.0, 4.0], &[1.0, 3.0, 2.0, 4.0]), 0.948_683_298_050_513_8));
    assert_eq!(rank_correlation(&[1.0, 1.0], &[1.0, 2.0]), None);
}
