//! Writes the config drive of a guest to standard output, from its data as JSON on standard
//! input: what the agent does with the Secret that the manager made.

use std::io::{Read, Write};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let data: pileus_guest::GuestData = serde_json::from_str(&text)?;
    std::io::stdout().write_all(&pileus_guest::config_drive(&data)?)?;
    Ok(())
}
