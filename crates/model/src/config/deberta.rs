//! DeBERTa v1, v2, v3 and mDeBERTa configurations.

use super::fields::Fields;
use super::*;

// Limits keep a hostile config from asking for absurd tables; the largest release (xxlarge) is far below.
const MOST_WIDTH: usize = 1 << 16;
const MOST_POSITIONS: usize = 1 << 20;

pub(super) fn parse(f: &Fields<'_>, family: Family, task: Task) -> Result<Architecture> {
    let v1 = family == Family::DebertaV1;
    let hidden = f.size("hidden_size", None, MOST_WIDTH)?;
    let heads = f.size("num_attention_heads", None, 1024)?;
    let whole = || -> Result<usize> {
        if !hidden.is_multiple_of(heads) {
            return Err(Error::unsupported("heads do not divide the hidden size")
                .at("num_attention_heads")
                .expected(format!("a divisor of hidden_size {hidden}"))
                .found(heads));
        }
        Ok(hidden / heads)
    };
    // v1 ignores attention_head_size; v2 falls back to the quotient.
    let head_size = match f.integer("attention_head_size")? {
        Some(_) if !v1 => f.size("attention_head_size", None, MOST_WIDTH)?,
        _ => whole()?,
    };
    let max_positions = f.size("max_position_embeddings", Some(512), MOST_POSITIONS)?;
    let embedding = f.size("embedding_size", Some(hidden), MOST_WIDTH)?;
    let (relative, score_terms) = relative_attention(f, v1, max_positions)?;
    let kernel = match f.integer("conv_kernel_size")? {
        Some(k) if k > 0 && !v1 => f.size("conv_kernel_size", None, 63)?,
        _ => 0,
    };
    let convolution = (kernel > 0).then(|| convolution(f, kernel, hidden)).transpose()?;
    if !v1 && f.flag("talking_head", false)? {
        return Err(Error::unsupported("talking heads exist in DeBERTa v1 only").at("talking_head"));
    }
    let labels = super::bert::labels(f, task)?;
    Ok(Architecture {
        family,
        hidden,
        layers: f.size("num_hidden_layers", None, 1024)?,
        heads,
        head_size,
        intermediate: f.size("intermediate_size", None, MOST_WIDTH)?,
        vocabulary: f.size("vocab_size", None, 1 << 23)?,
        embedding,
        embedding_projection: if embedding == hidden {
            EmbeddingProjection::None
        } else {
            EmbeddingProjection::BeforeNorm
        },
        positions: f
            .flag("position_biased_input", true)?
            .then_some(AbsolutePositions { rows: max_positions, after_pad: None }),
        types: match f.integer("type_vocab_size")? {
            None | Some(0) => 0,
            Some(_) => f.size("type_vocab_size", None, 1 << 16)?,
        },
        activation: f.activation("hidden_act", Activation::Gelu)?,
        eps: f.eps("layer_norm_eps", 1e-7)?,
        relative,
        score_terms,
        talking_heads: v1 && f.flag("talking_head", false)?,
        convolution,
        head: Head {
            task,
            activation: match task {
                Task::FillMask => f.activation("hidden_act", Activation::Gelu)?,
                _ => f.activation("pooler_hidden_act", Activation::Gelu)?,
            },
        },
        reading: f.reading(labels.len())?,
        labels,
        max_positions,
    })
}

/// Relative attention and the number of score terms in the divisor.
///
/// The divisor counts what `pos_att_type` lists even without relative attention; v1 counts every entry,
/// v2 only c2p and p2c. `p2p` is accepted and has no score term, as in Hugging Face.
fn relative_attention(
    f: &Fields<'_>,
    v1: bool,
    max_positions: usize,
) -> Result<(Option<RelativeAttention>, usize)> {
    let kinds = f.words("pos_att_type")?;
    if let Some(unknown) = kinds.iter().find(|k| !["c2p", "p2c", "p2p"].contains(&k.as_str())) {
        return Err(Error::unsupported("attention term is not supported")
            .at("pos_att_type")
            .expected("c2p, p2c or p2p")
            .found(unknown));
    }
    let has = |kind: &str| kinds.iter().any(|k| k == kind);
    let (c2p, p2c) = (has("c2p"), has("p2c"));
    let score_terms = if v1 { 1 + kinds.len() } else { 1 + usize::from(c2p) + usize::from(p2c) };
    if !f.flag("relative_attention", false)? {
        return Ok((None, score_terms));
    }
    let max_distance = match f.integer("max_relative_positions")? {
        Some(m) if m >= 1 => f.size("max_relative_positions", None, MOST_POSITIONS)?,
        _ => max_positions,
    };
    let buckets = match f.integer("position_buckets")? {
        Some(b) if b > 0 && !v1 => Some(f.size("position_buckets", None, MOST_POSITIONS)?),
        _ => None,
    };
    if let Some(b) = buckets
        && (b < 2 || max_distance == b / 2 + 1)
    {
        // The bucket formula divides by ln((max_distance - 1) / (buckets / 2)), which would be zero.
        return Err(Error::unsupported("log buckets are undefined")
            .at("position_buckets")
            .expected("at least 2, and half of it not the maximum distance minus 1")
            .found(format!("{b} buckets for distance {max_distance}")));
    }
    let norms: Vec<String> = f.words("norm_rel_ebd")?;
    if let Some(unknown) = norms.iter().find(|n| !["none", "layer_norm"].contains(&n.as_str())) {
        return Err(Error::unsupported("table normalisation is not supported")
            .at("norm_rel_ebd")
            .expected("none or layer_norm")
            .found(unknown));
    }
    let relative = RelativeAttention {
        buckets: buckets.map(|b| b as u32),
        max_distance: max_distance as u32,
        span: buckets.unwrap_or(max_distance) as u32,
        content_to_position: c2p,
        position_to_content: p2c,
        shared_projections: !v1 && f.flag("share_att_key", false)?,
        normalized_table: !v1 && norms.iter().any(|n| n == "layer_norm"),
    };
    Ok((Some(relative), score_terms))
}

fn convolution(f: &Fields<'_>, kernel: usize, hidden: usize) -> Result<Convolution> {
    if kernel.is_multiple_of(2) {
        return Err(Error::unsupported("kernel must be odd").at("conv_kernel_size").found(kernel));
    }
    let groups = f.size("conv_groups", Some(1), hidden)?;
    if !hidden.is_multiple_of(groups) {
        return Err(Error::unsupported("groups do not divide the hidden size")
            .at("conv_groups")
            .expected(format!("a divisor of hidden_size {hidden}"))
            .found(groups));
    }
    Ok(Convolution { kernel, groups, activation: f.activation("conv_act", Activation::Tanh)? })
}
