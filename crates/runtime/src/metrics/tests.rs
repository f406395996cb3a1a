//! Against scikit-learn, scipy, seqeval, statsmodels and the SQuAD script (`tools/make_metrics.py`).

use super::statistics::*;
use super::*;
use serde_json::Value;

fn golden(key: &str) -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/metrics.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let found = all[key].clone();
    assert!(!found.is_null(), "metrics.json has no {key}");
    found
}

fn list<T>(v: &Value, f: impl Fn(&Value) -> T) -> Vec<T> {
    v.as_array().unwrap().iter().map(f).collect()
}

fn numbers(v: &Value) -> Vec<f64> {
    list(v, |x| x.as_f64().unwrap())
}

fn indices(v: &Value) -> Vec<usize> {
    list(v, |x| x.as_u64().unwrap() as usize)
}

fn flags(v: &Value) -> Vec<bool> {
    list(v, |x| x.as_bool().unwrap_or_else(|| x.as_u64() == Some(1)))
}

fn near(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!((found - expected).abs() < 1e-9, "{what}: expected {expected}, found {found}");
}

fn once(n: usize) -> Vec<u32> {
    vec![1; n]
}

#[test]
fn classifiers_agree_with_scikit_learn() {
    for case in golden("classes").as_array().unwrap() {
        let (t, p) = (indices(&case["truth"]), indices(&case["predicted"]));
        let ones = once(t.len());
        let right = t.iter().zip(&p).map(|(t, p)| f64::from(u8::from(t == p))).collect();
        near(Mean(right).at(&ones), &case["accuracy"], "accuracy");
        near(Confusion::macro_f1(&t, &p).at(&ones), &case["macro_f1"], "macro F1");
        near(Confusion::matthews(&t, &p).at(&ones), &case["matthews"], "Matthews");
    }
}

#[test]
fn label_sets_agree_with_scikit_learn() {
    let case = golden("sets");
    let (t, p) = (list(&case["truth"], flags), list(&case["predicted"], flags));
    let ones = once(t.len());
    let same = t.iter().zip(&p).map(|(t, p)| f64::from(u8::from(t == p))).collect();
    near(Mean(same).at(&ones), &case["subset_accuracy"], "subset accuracy");
    let count = |f: &dyn Fn(bool, bool) -> bool, t: &[bool], p: &[bool]| {
        t.iter().zip(p).filter(|&(&t, &p)| f(t, p)).count() as u32
    };
    let counts = t
        .iter()
        .zip(&p)
        .map(|(t, p)| [count(&|t, p| t && p, t, p), count(&|_, p| p, t, p), count(&|t, _| t, t, p)]);
    near(Counts::f1(counts.collect()).at(&ones), &case["micro_f1"], "micro F1");
    near(LabelSets::macro_f1(t.clone(), p.clone()).at(&ones), &case["macro_f1"], "macro F1");
}

/// The second value of each pair is of rows repeated as often as their weight says.
#[test]
fn orders_agree_with_scipy_and_scikit_learn_whole_and_resampled() {
    for case in golden("scores").as_array().unwrap() {
        let (x, y) = (numbers(&case["x"]), numbers(&case["y"]));
        let weights: Vec<u32> = indices(&case["weights"]).into_iter().map(|w| w as u32).collect();
        let figures: [(&str, Box<dyn Figure>); 3] = [
            ("pearson", Box::new(Pearson::new(x.clone(), y.clone()))),
            ("spearman", Box::new(Spearman::new(&x, &y))),
            ("area", Box::new(Area::new(&x, flags(&case["positive"])))),
        ];
        for (name, figure) in figures {
            near(figure.at(&once(x.len())), &case[name][0], name);
            near(figure.at(&weights), &case[name][1], &format!("{name}, resampled"));
        }
    }
}

#[test]
fn what_is_undefined_is_not_a_number() {
    let ones = once(3);
    assert!(Pearson::new(vec![1.0; 3], vec![1.0, 2.0, 3.0]).at(&ones).is_nan());
    assert!(Spearman::new(&[1.0, 2.0, 3.0], &[2.0; 3]).at(&ones).is_nan());
    assert!(Area::new(&[1.0, 2.0, 3.0], vec![true; 3]).at(&ones).is_nan());
}

#[test]
fn calibration_agrees_with_numpy() {
    let case = golden("calibration");
    let figure = Calibration::new(numbers(&case["confidence"]), flags(&case["right"]));
    near(figure.at(&once(numbers(&case["confidence"]).len())), &case["error"], "calibration error");
}

#[test]
fn entities_agree_with_seqeval() {
    for case in golden("tags").as_array().unwrap() {
        let rows = |key: &str| list(&case[key], |row| list(row, |t| t.as_str().unwrap().to_owned()));
        let (truth, predicted) = (rows("truth"), rows("predicted"));
        let counts = |find: Finder| -> Vec<[u32; 3]> {
            fn borrowed(row: &[String]) -> Vec<&str> {
                row.iter().map(String::as_str).collect()
            }
            let row = |(t, p): (&Vec<String>, &Vec<String>)| {
                entity_counts(&find(&borrowed(t)), &find(&borrowed(p)))
            };
            truth.iter().zip(&predicted).map(row).collect()
        };
        let ones = once(truth.len());
        near(Counts::precision(counts(entities)).at(&ones), &case["precision"], "precision");
        near(Counts::recall(counts(entities)).at(&ones), &case["recall"], "recall");
        near(Counts::f1(counts(entities)).at(&ones), &case["f1"], "f1");
        if !case["strict_f1"].is_null() {
            near(Counts::f1(counts(strict_entities)).at(&ones), &case["strict_f1"], "strict f1");
        }
    }
}

#[test]
fn labels_without_a_prefix_are_entities_of_their_own_name() {
    assert_eq!(entities(&["PER", "PER", "O", "LOC"]), [("PER", 0, 1), ("LOC", 3, 3)]);
}

#[test]
fn answers_agree_with_the_squad_script() {
    for case in golden("answers").as_array().unwrap() {
        let truth = list(&case["truth"], |t| t.as_str().unwrap().to_owned());
        let answer = case["answer"].as_str().unwrap();
        assert_eq!(normalized(answer), case["normalized"].as_str().unwrap());
        near(exact_match(&truth, answer), &case["exact"], &format!("exact match of {case}"));
        near(answer_f1(&truth, answer), &case["f1"], &format!("F1 of {case}"));
    }
}

#[test]
fn intervals_and_tests_agree_with_statsmodels_and_scipy() {
    for case in golden("wilson").as_array().unwrap() {
        let found = wilson(case[0].as_u64().unwrap() as usize, case[1].as_u64().unwrap() as usize);
        (0..2).for_each(|i| near(found[i], &case[2 + i], &format!("Wilson of {case}")));
    }
    for case in golden("mcnemar").as_array().unwrap() {
        let found = mcnemar(case[0].as_u64().unwrap() as usize, case[1].as_u64().unwrap() as usize);
        near(found.exact, &case[2], &format!("McNemar of {case}"));
        near(found.mid, &case[3], &format!("mid-p of {case}"));
    }
    // The reference maximises numerically, which is good to six digits.
    for case in golden("tango").as_array().unwrap() {
        let n = |i: usize| case[i].as_u64().unwrap() as usize;
        let found = tango(n(0), n(1), n(2));
        for (i, found) in found.into_iter().enumerate() {
            let expected = case[3 + i].as_f64().unwrap();
            assert!((found - expected).abs() < 2e-7, "Tango of {case}: found {found}");
        }
        // Swapping the models mirrors the interval.
        let mirrored = tango(n(1), n(0), n(2));
        assert!((mirrored[0] + found[1]).abs() < 1e-12 && (mirrored[1] + found[0]).abs() < 1e-12);
    }
    assert!((tango(0, 0, 500)[1] - resolution(500)).abs() < 1e-12);
    let case = golden("percentiles");
    let found = percentiles(numbers(&case["draws"])).unwrap();
    (0..2).for_each(|i| near(found[i], &case["interval"][i], "percentiles"));
}

#[test]
fn the_bootstrap_is_deterministic_and_finds_the_spread_theory_gives() {
    // 400 rows, 30 % of them right: the standard error of the mean is sqrt(.3 * .7 / 400) = .0229.
    let mean = Mean((0..400).map(|i| f64::from(u8::from(i % 10 < 3))).collect());
    let run = |seed, threads| bootstrap(&[&mean, &mean], 400, 4000, seed, threads);
    let draws = run(7, 1);
    assert_eq!(draws, run(7, 3), "threads change nothing");
    assert_ne!(draws, run(8, 1));
    assert_eq!(draws[0], draws[1], "figures see the same resamples");
    let [low, high] = percentiles(draws[0].clone()).unwrap();
    assert!((low - (0.3 - 1.96 * 0.0229)).abs() < 0.004 && (high - (0.3 + 1.96 * 0.0229)).abs() < 0.004);
}

#[test]
fn too_few_defined_resamples_give_no_interval() {
    assert_eq!(percentiles(vec![f64::NAN; 10]), None);
    assert_eq!(percentiles(vec![]), None);
    let mut draws = vec![1.0; 97];
    draws.extend([f64::NAN; 3]);
    assert_eq!(percentiles(draws), Some([1.0, 1.0]));
}
