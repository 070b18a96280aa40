"""From a config to a Runner, from trained weights to predictions."""
