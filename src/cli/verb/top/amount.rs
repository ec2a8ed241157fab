//! Amounts of bytes in at most five characters.

/// Formats a number of bytes: `999`, `9.9K`, `412M`.
pub(crate) fn amount(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["", "K", "M", "G", "T"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    match unit > 0 && value < 9.95 {
        true => format!("{value:.1}{}", UNITS[unit]),
        false => format!("{value:.0}{}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_at_most_five_characters() {
        for (bytes, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (1000.0, "1.0K"),
            (10_240.0, "10K"),
            (1_048_576.0, "1.0M"),
            (1_023_000_000.0, "976M"),
            (5e12, "4.5T"),
        ] {
            assert_eq!(amount(bytes), text);
        }
        for power in 0..14 {
            assert!(amount(10_f64.powi(power) - 1.0).len() <= 4, "{power}");
        }
    }
}
