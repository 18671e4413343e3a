"""The other relays: each the best plain relay its library allows, without tokens, metering or limits."""
