"""All kinds of teachers: a new one is a new file and one line here."""

from __future__ import annotations

from sparse_ir.training.teachers.base import TeacherSettings
from sparse_ir.training.teachers.bm25 import Bm25Settings
from sparse_ir.training.teachers.cross_encoder import CrossEncoderSettings
from sparse_ir.training.teachers.dense import DenseSettings
from sparse_ir.training.teachers.monot5 import MonoT5Settings
from sparse_ir.training.teachers.sparse import SparseSettings
from sparse_ir.training.teachers.training_file import FileSettings

# value of the key ``kind`` -> settings, which open the teacher and describe it in the model card
TEACHERS: dict[str, type[TeacherSettings]] = {
    "dense": DenseSettings,
    "sparse": SparseSettings,
    "cross-encoder": CrossEncoderSettings,
    "monot5": MonoT5Settings,
    "bm25": Bm25Settings,
    "file": FileSettings,
}
