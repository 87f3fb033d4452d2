"""What objectives that run a teacher in memory have in common."""

from collections.abc import Sequence

from gemmule.model.gemma import Gemma
from gemmule.teachers.gemma import GemmaTeacher
from gemmule.teachers.teacher import LocalTeacher
from gemmule.train.objective import Objective


class TaughtObjective(Objective):
    """An objective whose loss needs the hidden states of a teacher.

    Attributes:
        teacher: model that the student learns from.
    """

    teacher: LocalTeacher

    def models(self) -> Sequence[Gemma]:
        """The teacher, where it is a Gemma 2; one of another kind is whole on every rank."""
        return [self.teacher.model] if isinstance(self.teacher, GemmaTeacher) else []

    def prepare(self, device: str, compiled: bool) -> None:
        """Also moves the teacher to the device, and compiles it."""
        super().prepare(device, compiled)
        self.teacher.to(device)
        if compiled:
            self.teacher.compile()
