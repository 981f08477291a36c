"""The site: `make docs` builds it from these pages and from the docstrings, without a warning."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "ActorRaft"
author = "the authors of ActorRaft"
release = re.findall(r'^__version__ = "(.+)"', (ROOT / "actorraft" / "__init__.py").read_text(), flags=re.M)[0]
version = release
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "decisions/README.md"]  # the latter is for readers of the repository
html_theme = "furo"
html_title = f"ActorRaft {release}"
html_static_path: list[str] = []
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]

# Signatures as users write them; what a docstring says of itself under these heads is prose.
napoleon_custom_sections = ["Source", "Threads", "Process", "Invariant", "Shape", "Not here", "Deviation"]
napoleon_use_ivar = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
default_role = "code"  # one backtick in a docstring is code
