"""What owns the model: jobs wait, share canvases, and take turns step by step."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import monotonic

from dllm.decoding.loop import BrokenLogitsError
from dllm.decoding.memory_limits import NotEnoughMemoryError
from dllm.decoding.prompt_memory import PromptMemory
from dllm.models.model import DenoisingModel
from dllm.serve.job import Counts, Failure, Job, Key, LateError, StoppedError
from dllm.serve.wave import Wave

log = logging.getLogger(__name__)

_IDLE = 0.25  # seconds after which a waiting engine looks for deadlines


class FullError(RuntimeError):
    """Too many jobs wait already."""


@dataclass
class Engine:
    """Decodes the jobs that are submitted, in a thread of its own.

    Jobs with the same key share a canvas, and canvases take turns, a step each. A canvas has as
    many seats as there were jobs when it began; the seats of finished rows go to jobs that wait
    unless so few are left that a new canvas is cheaper. Which jobs share a canvas decides no token.
    """

    model: DenoisingModel
    max_rows: int = 16  # decoded at a time, of all canvases together
    max_waiting: int = 256
    counts: Counts = field(default_factory=Counts)
    memory: PromptMemory = field(default_factory=PromptMemory)  # of the canvas that began last
    _waiting: dict[Key, deque[Job]] = field(default_factory=dict)
    _waves: list[Wave] = field(default_factory=list)
    _changed: Condition = field(default_factory=Condition)
    _closing: bool = False
    _thread: Thread | None = None

    def start(self) -> None:
        """Begins to decode what is submitted."""
        self._thread = Thread(target=self._run, name="dllm-engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes jobs; raises FullError or StoppedError, and then takes none of them."""
        with self._changed:
            if self._closing:
                raise StoppedError("the server is ending: ask another one, or later")
            if self.num_waiting + len(jobs) > self.max_waiting:
                raise FullError(
                    f"{self.num_waiting} answers are waited for, of at most {self.max_waiting}: "
                    "ask again later"
                )
            for job in jobs:
                self._waiting.setdefault(job.key, deque()).append(job)
            self._changed.notify()

    def close(self, seconds: float | None = None) -> None:
        """Ends once all jobs have their answers, or after some seconds; those left fail."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._abandon()
                self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether jobs are decoded."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def closing(self) -> bool:
        """Whether no more jobs are taken."""
        return self._closing

    @property
    def num_waiting(self) -> int:
        """Jobs that have no seat yet."""
        with self._changed:
            return sum(map(len, self._waiting.values()))

    @property
    def num_active(self) -> int:
        """Rows that are decoded now."""
        return sum(wave.num_active for wave in self._waves)

    def _abandon(self) -> None:
        """Has nobody wait for an answer any more."""
        with self._changed:
            jobs = [job for queue in self._waiting.values() for job in queue]
            jobs += [job for wave in list(self._waves) for job in list(wave.jobs.values())]
            for job in jobs:
                job.cancelled = True
        for job in jobs:
            job.tell(Failure(StoppedError("the server has ended before the answer was there")))

    def _run(self) -> None:
        while self._turn():
            pass

    def _turn(self) -> bool:
        """Lets jobs in and steps each canvas once; False once all is over.

        What it names is gone with it: an idle engine holds no canvas.
        """
        with self._changed:
            self._drop()
            if not self._waves and not self._waiting:
                if not self._closing:
                    self._changed.wait(_IDLE)
                return not self._closing or bool(self._waiting)
            starting = self._grouped()
        for jobs in starting:
            self._begin(jobs)
        for wave in list(self._waves):
            self._step(wave)
        return True

    def _drop(self) -> None:
        """Takes out who does not wait any more, or has waited too long."""
        for key, queue in list(self._waiting.items()):
            left = [job for job in queue if job.cancelled or job.late]
            for job in left:
                queue.remove(job)
                if job.cancelled:
                    self.counts.cancelled += 1
                else:
                    self._fail(job, LateError(monotonic() - job.asked))
            if not queue:
                del self._waiting[key]

    def _grouped(self) -> list[list[Job]]:
        """Returns jobs that begin together on new canvases, those that waited longest first.

        Not those for whom there are seats.
        """
        found = []
        room = self.max_rows - self.num_active
        for key, queue in sorted(self._waiting.items(), key=lambda item: item[1][0].asked):
            waves = [wave for wave in self._waves if wave.key == key]
            seats = min(sum(len(self._seated(wave)) for wave in waves), len(queue))
            room, left = room - seats, len(queue) - seats
            # A few rows more are not worth a canvas of their own while others are being decoded.
            few = bool(waves) and room < min(left, self.max_rows) / 2
            if few or room < 1 or not left:
                continue
            # Who came first takes the seats, where that is no other length.
            begin = list(queue)[-min(left, room) :] if seats else list(queue)[:room]
            for job in begin:
                queue.remove(job)
            found.append(begin)
            room -= len(begin)
            if not queue:
                del self._waiting[key]
        return found

    def _begin(self, jobs: list[Job]) -> None:
        """Starts a canvas; where it cannot be, each job is tried alone."""
        try:
            self._waves.append(Wave(self.model, jobs, self._take, self.counts, self.memory))
        except Exception as error:  # noqa: BLE001 whatever it is, it is one answer's
            self._alone(jobs, error)

    def _take(self, wave: Wave, num_free: int) -> list[Job]:
        """Returns jobs for the free seats of a canvas, where that is worth it."""
        with self._changed:
            taken = self._seated(wave)[:num_free]
            for job in taken:
                self._waiting[wave.key].remove(job)
            if taken and not self._waiting[wave.key]:
                del self._waiting[wave.key]
            return taken

    def _seated(self, wave: Wave) -> list[Job]:
        """Returns the jobs that wait and would take free seats of a canvas."""
        queue = self._waiting.get(wave.key)
        if not queue or not wave.admits:
            return []
        if not wave.fits(queue[0]) or self._passed(queue[0]):
            return []  # who waited longest needs another canvas, for which there must be room
        count = min(wave.num_seats - wave.num_active, self.max_rows - self.num_active)
        fitting = [job for job in queue if wave.fits(job)][:count]
        # Finished rows are fed until their seats are taken: of a canvas that is mostly empty the
        # rest is left to end, and who waits begins on a new one.
        few = 2 * (wave.num_active + len(fitting)) < wave.num_seats
        return [] if few else fitting

    def _passed(self, job: Job) -> bool:
        """Whether a job waits for a canvas that came earlier."""
        served = {wave.key for wave in self._waves}
        others = (queue[0] for key, queue in self._waiting.items() if key not in served)
        return any(other.asked < job.asked for other in others)

    def _step(self, wave: Wave) -> None:
        """Runs one step of a canvas, and deals with what may go wrong in it."""
        try:
            going = wave.step()
        except BrokenLogitsError as error:
            self._remove(wave)
            broken = wave.broken()
            for job in broken:
                self._fail(job, error)
            self._again([job for job in wave.jobs.values() if job not in broken])
            return
        except NotEnoughMemoryError as error:
            self._remove(wave)
            self._smaller(list(wave.jobs.values()), error)
            return
        except Exception as error:  # noqa: BLE001 whatever it is, it is one answer's
            self._remove(wave)
            self._alone(list(wave.jobs.values()), error)
            return
        if not going or not wave.jobs:
            self._waves.remove(wave)

    def _remove(self, wave: Wave) -> None:
        """Forgets a canvas that failed, and what it may have stored that is not right."""
        self._waves.remove(wave)
        self.memory.clear()

    def _fail(self, job: Job, error: Exception) -> None:
        self.counts.failed += 1
        job.tell(Failure(error))

    def _again(self, jobs: Sequence[Job]) -> None:
        """Has jobs begin once more, before all others: their tokens come out the same."""
        with self._changed:
            for job in reversed(jobs):
                self._waiting.setdefault(job.key, deque()).appendleft(job)

    def _smaller(self, jobs: list[Job], error: Exception) -> None:
        """Tries rows that found no memory again, half as many at a time."""
        if len(jobs) == 1:
            self._fail(jobs[0], error)
            return
        self.max_rows = max(1, len(jobs) // 2)
        log.warning("out of memory: at most %d rows are decoded at a time now", self.max_rows)
        self._again(jobs)

    def _alone(self, jobs: list[Job], error: Exception) -> None:
        """Finds who of some jobs cannot be decoded: each is tried on a canvas of its own."""
        log.exception("a canvas of %d rows failed", len(jobs), exc_info=error)
        if len(jobs) == 1:
            self._fail(jobs[0], error)
            return
        for job in jobs:
            self._begin([job])
