"""The table of families. A new family is a module beside this one and a line here."""

from __future__ import annotations

from sparse_ir.models.families.base import Family
from sparse_ir.models.families.decoder import Decoder
from sparse_ir.models.families.masked_lm import MaskedLanguageModel

# A folder belongs to the first family that recognizes it by files of its own, in this order; any
# other folder belongs to the default family.
FAMILIES: tuple[type[Family], ...] = (Decoder, MaskedLanguageModel)
DEFAULT_FAMILY = MaskedLanguageModel()
