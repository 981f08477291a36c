"""The nemesis: real processes under real faults, and a judge of what their clients saw (docs/nemesis.md)."""
