use super::*;
use crate::plan::{Plan, plan};
use qberta_model::Architecture;
use qberta_store::Source;
use qberta_store::manifest::{Decision, Group};

fn arch(case: &str) -> Architecture {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/golden").join(case);
    Source::open(&dir, None).unwrap().arch
}

fn planned(text: &str) -> Result<Plan> {
    plan(&arch("v3-sequence"), &Recipe::parse(text, "my.toml")?)
}

const QUERY: &str = "deberta.encoder.layer.0.attention.self.query_proj";
const OUTPUT: &str = "deberta.encoder.layer.0.attention.output.dense";
const WORDS: &str = "deberta.embeddings.word_embeddings";

#[test]
fn plain_patterns_match_whole_parts() {
    let cases = [
        ("layer.3", "deberta.encoder.layer.3.output.dense", true),
        ("layer.3", "deberta.encoder.layer.31.output.dense", false),
        ("output.dense", "deberta.encoder.layer.3.attention.output.dense", true),
        ("query_proj", "deberta.encoder.layer.3.attention.self.query_proj", true),
        ("query", "deberta.encoder.layer.3.attention.self.query_proj", false),
        ("query*", "deberta.encoder.layer.3.attention.self.query_proj", true),
        ("word_embeddings", "embeddings.word_embeddings", true),
        ("layer.*.intermediate", "encoder.layer.12.intermediate.dense", true),
        ("re:layer\\.[01]\\.", "encoder.layer.1.intermediate.dense", true),
        ("re:layer\\.[01]\\.", "encoder.layer.2.intermediate.dense", false),
        ("re:.*output\\.dense$", "encoder.layer.2.output.dense", true),
    ];
    for (pattern, name, expected) in cases {
        assert_eq!(Pattern::parse(pattern).unwrap().matches(name), expected, "{pattern} on {name}");
    }
}

#[test]
fn malformed_patterns_are_refused() {
    for text in ["", "re:", "re:(", "."] {
        assert!(Pattern::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn presets_are_their_files() {
    for (name, text) in PRESETS {
        let recipe = Recipe::new(name, &[]).unwrap();
        assert_eq!(recipe.name, name);
        assert!(!recipe.about.is_empty(), "{name} says nothing about itself");
        assert_eq!(recipe.record().toml, None, "a preset is recorded by name");
        // The file of a preset is a recipe like any other.
        assert_eq!(Recipe::parse(text, "copy.toml").unwrap().record().name, name);
    }
    let decisions = |name: &str| plan(&arch("v3-sequence"), &Recipe::new(name, &[]).unwrap()).unwrap();
    let int8 = |input| Decision { input, weight: Weight::Int8Channel };
    let (dynamic, weight_only) = (decisions("dynamic"), decisions("weight-only"));
    assert_eq!((dynamic[QUERY], dynamic[WORDS]), (int8(Input::TokenAsymmetric), int8(Input::Float)));
    assert!(weight_only.values().all(|d| *d == int8(Input::Float)));
}

#[test]
fn without_a_base_what_is_not_said_is_float() {
    let plan = planned("name = \"tables\"\n[words]\nweight = \"int8\"\n").unwrap();
    assert_eq!(plan[WORDS].weight, Weight::Int8Channel);
    assert!(plan.iter().all(|(name, d)| name == WORDS || *d == Decision::FLOAT));
}

#[test]
fn the_last_rule_that_sets_a_key_decides_it() {
    let plan = planned(
        r#"
name = "mine"
base = "dynamic"
[[rules]]
modules = ["attention", "intermediate"]
input = "dynamic-symmetric"
[[rules]]
modules = "layer.0.attention"
weight = "float"
[[rules]]
modules = "query_proj"
weight = "int8"
"#,
    )
    .unwrap();
    let symmetric = Decision { input: Input::TokenSymmetric, weight: Weight::Int8Channel };
    // The first rule's input stands: the third set the weight alone.
    assert_eq!(plan[QUERY], symmetric);
    // A weight made float takes its input with it.
    assert_eq!(plan[OUTPUT], Decision::FLOAT);
    assert_eq!(plan[&OUTPUT.replace("layer.0", "layer.1")], symmetric);
    let down = "deberta.encoder.layer.0.output.dense";
    assert_eq!(plan[down].input, Input::TokenAsymmetric, "no rule is about it");
}

#[test]
fn skipped_modules_are_float_whatever_the_rules_say() {
    let text = "name = \"m\"\nbase = \"dynamic\"\n[[rules]]\nmodules = \"query_proj\"\nweight = \"int8\"\n";
    let recipe = Recipe::parse(text, "my.toml").unwrap().skipping(&["layer.0".to_owned()]).unwrap();
    let plan = plan(&arch("v3-sequence"), &recipe).unwrap();
    assert_eq!(plan[QUERY], Decision::FLOAT);
    assert_eq!(recipe.record().skip, ["layer.0"]);
}

#[test]
fn the_canonical_text_is_the_same_recipe() {
    let text = r#"
# a remark
name = "mine"
about = "careful"
base = "dynamic"
[[rules]]
input = "dynamic-symmetric"
modules = 're:attention\.self'
[linears]
weight = "int8"
"#;
    // TOML wants tables before arrays of tables; the order of sections is the writer's choice.
    let recipe = Recipe::parse(text, "my.toml").unwrap();
    let canonical = recipe.record().toml.unwrap();
    assert!(!canonical.contains("base"), "the base is worked in: {canonical}");
    let again = Recipe::parse(&canonical, "my.toml").unwrap();
    assert_eq!(again.record().toml.unwrap(), canonical);
    let arch = arch("v3-sequence");
    assert_eq!(plan(&arch, &recipe).unwrap(), plan(&arch, &again).unwrap());

    let text = "name = \"four\"\nbase = \"w4a8\"\nrounding = \"gptq\"\nbias_correction = true\n[words]\nweight = \"int4\"\n\
        group = 128\n[[rules]]\nmodules = \"layer.0\"\nweight = \"int4\"\ngroup = 32\n";
    let four = Recipe::parse(text, "my.toml").unwrap();
    let again = Recipe::parse(&four.record().toml.unwrap(), "my.toml").unwrap();
    assert_eq!(again.record(), four.record());
    assert_eq!(
        (again.linear_weight, again.word_weight),
        (Weight::Int4(Group::G64), Weight::Int4(Group::G128))
    );
    assert_eq!((again.rules[0].weight, again.fit()), (Some(Weight::Int4(Group::G32)), four.fit()));
    assert!(four.fit().is_some() && recipe.fit().is_none());

    let text = "name = \"scores\"\nbase = \"dynamic\"\n[attention]\nscores = \"int8\"\n[[rules]]\n\
        modules = \"layer.0\"\nscores = \"float\"\n";
    let scores = Recipe::parse(text, "my.toml").unwrap();
    let again = Recipe::parse(&scores.record().toml.unwrap(), "my.toml").unwrap();
    assert_eq!(again.record(), scores.record());
    assert_eq!((again.scores, again.rules[0].scores), (Scores::Int8, Some(Scores::Float)));
    let text = "name = \"context\"\nbase = \"dynamic\"\n[attention]\ncontext = \"int8\"\n[[rules]]\n\
        modules = \"layer.0\"\ncontext = \"float\"\n";
    let context = Recipe::parse(text, "my.toml").unwrap();
    let again = Recipe::parse(&context.record().toml.unwrap(), "my.toml").unwrap();
    assert_eq!(again.record(), context.record());
    assert_eq!((again.context, again.rules[0].context), (Values::Int8, Some(Values::Float)));
    assert_eq!(again.scores, Scores::Float);
    // A recipe that does not speak of scores is written as it always was.
    assert!(
        !Recipe::parse("name = \"m\"\nbase = \"dynamic\"\n", "m")
            .unwrap()
            .record()
            .toml
            .unwrap()
            .contains("attention")
    );
}

#[test]
fn what_a_plan_decided_about_scores_has_a_text() {
    let arch = arch("v3-sequence");
    let mut wanted = plan(&arch, &Recipe::new("dynamic", &[]).unwrap()).unwrap();
    let attention = |layer| format!("deberta.encoder.layer.{layer}.attention.self");
    let both = [Decision::INT8_SCORES, Decision::STATIC_SCORES];
    for (layer, decision) in both.into_iter().flat_map(|d| (0..arch.layers).map(move |l| (l, d))) {
        wanted.insert(attention(layer), decision);
        let text = Recipe::text_of("plan", "", &arch, &wanted).unwrap();
        assert_eq!(plan(&arch, &Recipe::parse(&text, "plan").unwrap()).unwrap(), wanted, "{text}");
        assert_eq!(text.contains("[attention]"), layer + 1 == arch.layers, "{text}");
    }
    for layer in 0..arch.layers {
        wanted.insert(format!("{}.context", attention(layer)), Decision::INT8_CONTEXT);
        let text = Recipe::text_of("plan", "", &arch, &wanted).unwrap();
        assert_eq!(plan(&arch, &Recipe::parse(&text, "plan").unwrap()).unwrap(), wanted, "{text}");
        assert_eq!(
            text.contains("[attention]\nscores = \"static\"\ncontext"),
            layer + 1 == arch.layers,
            "{text}"
        );
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_its_line() {
    let cases: [(&str, &[&str]); 30] = [
        ("", &["missing field `name`"]),
        ("name = \"a b\"\n", &["line 1", "no usable name"]),
        ("name = \"dynamic\"\n[words]\nweight = \"int8\"\n", &["line 1", "name of a preset"]),
        (
            "name = \"m\"\nbase = \"magic\"\n",
            &[
                "line 2",
                "expected dynamic, dynamic-attention, static, static-attention, w4a8, w4a8-gptq, weight-only, weight-only-4bit, found magic",
            ],
        ),
        ("name = \"m\"\n\nbits = 4\n", &["line 3", "unknown field `bits`"]),
        ("name = \"m\"\n[linears]\nweight = \"int3\"\n", &["line 3", "`int3`", "`int4`", "`int8`"]),
        ("name = \"m\"\nrounding = \"up\"\n", &["line 2", "`up`", "`gptq`"]),
        ("name = \"m\"\n[linears]\nweight = \"int4\"\ngroup = 48\n", &["line 2", "32, 64 or 128, found 48"]),
        ("name = \"m\"\n[linears]\nweight = \"int8\"\ngroup = 64\n", &["line 2", "only 4-bit weights"]),
        ("name = \"m\"\n[linears]\ngroup = 64\n", &["line 2", "only 4-bit weights"]),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[[rules]]\nmodules = \"query_proj\"\ngroup = 64\n",
            &["line 4", "only 4-bit weights"],
        ),
        ("name = \"m\"\n[words]\nweight = \"int4\"\n", &["groups of 64", "group = 32", "word_embeddings"]),
        ("name = \"m\"\n[linears]\noutput = \"float\"\n", &["line 3", "unknown field `output`"]),
        ("name = \"m\"\n[words]\ninput = \"float\"\n", &["line 3", "unknown field `input`"]),
        (
            "name = \"m\"\n[linears]\nweight = \"float\"\ninput = \"dynamic-symmetric\"\n",
            &["line 2", "float input"],
        ),
        ("name = \"m\"\nname = \"n\"\n", &["line 2", "duplicate key"]),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[[rules]]\nmodules = \"re:(\"\nweight = \"float\"\n",
            &["line 4", "not a regular expression"],
        ),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[[rules]]\nmodules = []\nweight = \"float\"\n",
            &["line 4", "no pattern"],
        ),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[[rules]]\nmodules = \"query_proj\"\n",
            &["line 4", "decides nothing"],
        ),
        (
            "name = \"m\"\nbase = \"dynamic\"\n\n[[rules]]\nmodules = [\"query_proj\", \"layer.9\"]\nweight = \"float\"\n",
            &["line 5", "matches nothing", "layer.9"],
        ),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[[rules]]\nmodules = \"word_embeddings\"\ninput = \"float\"\n",
            &["line 4", "only linears"],
        ),
        (
            "name = \"m\"\n[words]\nweight = \"int8\"\n[[rules]]\nmodules = \"query_proj\"\ninput = \"dynamic-symmetric\"\n",
            &["line 5", "query_proj", "float input"],
        ),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[[rules]]\nmodules = \"word_embeddings\"\nscores = \"int8\"\n",
            &["line 4", "compute none"],
        ),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[attention]\nscores = \"int4\"\n",
            &["line 4", "`int4`", "`int8`"],
        ),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[attention]\ncontext = \"static\"\n",
            &["line 4", "`static`", "`int8`"],
        ),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[[rules]]\nmodules = \"query_proj\"\ncontext = \"int8\"\n",
            &["line 4", "context", "compute none"],
        ),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[[rules]]\nmodules = 're:attention\\.self\\.context$'\nweight = \"int8\"\n",
            &["line 4", "weight of modules that have none"],
        ),
        (
            "name = \"m\"\nbase = \"dynamic\"\n[[rules]]\nmodules = 're:attention\\.self\\.context$'\nscores = \"int8\"\n",
            &["line 4", "scores of modules that compute none"],
        ),
        ("name = \"m\"\n[linears]\nweight = \"bf16\"\ninput = \"static\"\n", &["line 2", "float input"]),
        ("name = \"m\"\n", &["nothing left to quantize"]),
    ];
    for (text, parts) in cases {
        let error = planned(text).expect_err(text).to_string();
        for part in parts {
            assert!(error.contains(part), "{text:?}: {part:?} is not in {error:?}");
        }
    }
    let error = Recipe::open("no/such.toml", &[]).unwrap_err();
    assert!(error.to_string().contains("no/such.toml"), "{error}");
    assert!(Recipe::open("dynamic.toml", &[]).unwrap_err().advice().unwrap().contains("without .toml"));
    assert!(Recipe::new("int3", &[]).unwrap_err().to_string().contains(
        "expected dynamic, dynamic-attention, static, static-attention, w4a8, w4a8-gptq, weight-only"
    ));
}
