//! What the benches share: the lab, a recording of what its API server says, figures.

pub mod domains;
pub mod lab;
pub mod record;
pub mod writes;

/// A bench has nobody to handle its errors but the person who reads them.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The value that `percent` of `values` do not exceed (nearest rank); 0 without values.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// `ok` or `MISSED`, as the lines of figures say it.
pub fn verdict(met: bool) -> &'static str {
    if met { "ok" } else { "MISSED" }
}
