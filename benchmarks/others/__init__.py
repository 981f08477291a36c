"""Other systems under the same load, each with a load generator in its own best language and settings."""
