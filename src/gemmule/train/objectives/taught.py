"""What objectives that run a teacher in memory have in common."""

from gemmule.teachers.teacher import LocalTeacher
from gemmule.train.objective import Objective


class TaughtObjective(Objective):
    """An objective whose loss needs the hidden states of a teacher.

    Attributes:
        teacher: model that the student learns from.
    """

    teacher: LocalTeacher

    def prepare(self, device: str, compiled: bool) -> None:
        """Also moves the teacher to the device, and compiles it."""
        super().prepare(device, compiled)
        self.teacher.to(device)
        if compiled:
            self.teacher.compile()
