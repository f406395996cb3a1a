//! Answers to questions, compared as the SQuAD 2.0 script does.

/// Lower case, without ASCII punctuation, without `a`, `an` and `the`, with single spaces.
pub fn normalized(answer: &str) -> String {
    let plain: String = answer.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    let mut out = String::with_capacity(plain.len());
    let mut word = String::new();
    let close = |word: &mut String, out: &mut String| {
        let article = matches!(word.as_str(), "a" | "an" | "the");
        out.push_str(if article { " " } else { word });
        word.clear();
    };
    for c in plain.chars() {
        if c.is_alphanumeric() {
            word.push(c);
        } else {
            close(&mut word, &mut out);
            out.push(c);
        }
    }
    close(&mut word, &mut out);
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Accepted answers that hold more than articles and punctuation; none of them means no answer.
fn accepted(truth: &[String]) -> Vec<String> {
    let all: Vec<String> = truth.iter().map(|t| normalized(t)).filter(|t| !t.is_empty()).collect();
    if all.is_empty() { vec![String::new()] } else { all }
}

/// 1 if the answer is one of those accepted, else 0. No accepted answer asks for the empty one.
pub fn exact_match(truth: &[String], answer: &str) -> f64 {
    let answer = normalized(answer);
    f64::from(u8::from(accepted(truth).contains(&answer)))
}

/// The best F1 of words shared with an accepted answer.
pub fn f1(truth: &[String], answer: &str) -> f64 {
    let answer = normalized(answer);
    accepted(truth).iter().map(|t| overlap(t, &answer)).fold(0.0, f64::max)
}

fn overlap(truth: &str, answer: &str) -> f64 {
    if truth.is_empty() || answer.is_empty() {
        return f64::from(u8::from(truth == answer));
    }
    let mut left: Vec<&str> = truth.split(' ').collect();
    let total = left.len() + answer.split(' ').count();
    let mut shared = 0;
    for word in answer.split(' ') {
        if let Some(i) = left.iter().position(|w| *w == word) {
            left.swap_remove(i);
            shared += 1;
        }
    }
    2.0 * f64::from(shared) / total as f64
}
