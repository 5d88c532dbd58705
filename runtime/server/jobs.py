"""Long texts, read one after the other beside what is spoken: each a book in a folder, so that it can be gone on with."""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Cancelled, InputError, Refused, TortoiseError
from ..longform import Book, Joining, read_document
from ..longform.document import EPUB, MARKDOWN
from ..rng import fresh_seed
from ..scheduler import Priority, Share
from .job_fields import JobWish, parse_job
from .job_store import CANCELLED, DONE, FAILED, RUNNING, WAITING, Job, JobStore, now
from .service import Service

log = logging.getLogger("tortoise_rt.server")
MOST_JOBS = 100  #: of one owner
SUFFIXES = (".txt", *MARKDOWN, *EPUB)
BOOK = "book"  #: the reading's folder in the job's
_ID = re.compile("[0-9a-f]{16}")


class Jobs:
    """Takes jobs and does them, in a thread, until it is closed. What is not done by then goes on when the folder is opened again."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service = service
        self.store = JobStore(folder)
        # Of jobs that were not yet taken, or no longer kept, when the process was killed. Whatever else lies there is not ours.
        for place in folder.iterdir():
            if _ID.fullmatch(place.name) and self.store.get(place.name) is None:
                shutil.rmtree(place, ignore_errors=True)
        self._news = threading.Condition()
        self._closed = False
        self._present: tuple[str, Share] | None = None  #: the job that runs
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    # --- for callers ---

    def submit(self, owner: str, body: Mapping[str, Any], text: bytes, suffix: str = ".txt") -> Job:
        """A new job. ``text``: a file's content. Raises InputError, or Refused where there are too many."""
        if len(self.store.of(owner)) >= MOST_JOBS:
            raise Refused(f"you have {MOST_JOBS} jobs, as many as are kept: delete some", 409)
        if suffix not in SUFFIXES:
            raise InputError(f"a text must be one of {', '.join(SUFFIXES)}, not {suffix[:20]!r}")
        wish = parse_job(body)
        body = {name: value for name, value in body.items() if value is not None and name != "input"}
        body["seed"] = fresh_seed() if wish.speech.seed is None else wish.speech.seed
        job = Job(secrets.token_hex(8), owner, json.dumps(body), f"text{suffix}", now(), 0)
        place = self.store.place(job.id)
        place.mkdir(mode=0o700)
        try:
            (place / job.source).write_bytes(text)
            with self._book(job, parse_job(body)) as book:  # finds out what is wrong with it
                job.total = len(book.manifest.clips)
            self.store.add(job)
        except BaseException as error:
            shutil.rmtree(place, ignore_errors=True)
            if isinstance(error, InputError):
                raise type(error)(str(error).replace(str(place / job.source), "the text")) from None
            raise
        with self._news:
            self._news.notify()
        return job

    def get(self, owner: str, number: str) -> Job:
        """Raises Refused where the owner has none of that number."""
        job = self.store.get(number)
        if job is None or job.owner != owner:
            raise Refused(f"there is no job {number[:40]!r}", 404)
        return job

    def cancel(self, owner: str, number: str) -> Job:
        """Give a job up; nothing happens when it has ended. What was made of it stays."""
        with self._news:
            job = self.get(owner, number)
            if not job.ended:
                self.store.change(job.id, status=CANCELLED)
            if self._present is not None and self._present[0] == job.id:
                self._present[1].close()
        return self.get(owner, number)

    def remove(self, owner: str, number: str) -> None:
        """Give a job up and forget it, with its files."""
        job = self.cancel(owner, number)
        with self._news:
            self._news.wait_for(lambda: self._present is None or self._present[0] != job.id)
            self.store.remove(job.id)
        shutil.rmtree(self.store.place(job.id), ignore_errors=True)

    def file(self, owner: str, number: str, name: str) -> Path:
        """A file of a job that is done; raises Refused where there is none of that name."""
        job = self.get(owner, number)
        if name not in [file["name"] for file in job.files]:
            raise Refused(f"job {job.id} is {job.status} and has no file {name[:80]!r}", 404)
        return self.store.place(job.id) / BOOK / name

    def close(self) -> None:
        """Stop; the job that runs waits for the next time."""
        with self._news:
            self._closed = True
            if self._present is not None:
                self._present[1].close()
            self._news.notify()
        self._thread.join()
        self.store.close()

    # --- the thread ---

    def _run(self) -> None:
        while (begun := self._begin()) is not None:
            job, share = begun
            try:
                with share:
                    self._read(job, share)
            except BaseException as error:
                self._end(job, error)
            with self._news:
                self._present = None
                self._news.notify_all()

    def _begin(self) -> tuple[Job, Share] | None:
        """The next job, once there is one; None at the end."""
        with self._news:
            self._news.wait_for(lambda: self._closed or self.store.next() is not None)
            job = None if self._closed else self.store.next()
            if job is None:
                return None
            share = Share(self._service.scheduler, Priority.BULK)
            self._present = job.id, share
            self.store.change(job.id, status=RUNNING)
            return job, share

    def _read(self, job: Job, share: Share) -> None:
        wish = parse_job(json.loads(job.body))

        def progress(stage: str, done: int, total: int) -> None:
            if stage == "reading":
                self.store.change(job.id, made=done)

        with self._book(job, wish) as book:
            book.render(progress, share)
            subtitles = None if wish.subtitles is None else f".{wish.subtitles}"
            joined = book.join(f".{wish.format}", Joining(by_chapter=wish.by_chapter, subtitles=subtitles))
            doubtful = book.doubtful()
        paths = [file.path for file in joined]
        paths += [path.with_suffix(subtitles) for path in paths if subtitles is not None]
        files = [{"name": path.name, "bytes": path.stat().st_size} for path in paths]
        with self._news:
            if self.store.get(job.id).status == RUNNING:  # type: ignore[union-attr]  # or it was given up behind its last clip
                self.store.change(job.id, status=DONE, files=files, doubtful=doubtful)
        log.info("job", extra={"facts": {"id": job.id, "status": DONE, "clips": job.total}})

    def _end(self, job: Job, error: BaseException) -> None:
        """A job has failed, or was given up: by its owner, or for the next time."""
        with self._news:
            given_up = isinstance(error, Cancelled)
            if not given_up:
                log.warning("a job failed", exc_info=error, extra={"facts": {"id": job.id}})
                ours = isinstance(error, TortoiseError)
                message = str(error) if ours else "the server failed; its log has the job's id"
                self.store.change(
                    job.id, status=FAILED, error=message.replace(str(self.store.place(job.id)), "the job")
                )
            elif self._closed:
                self.store.change(job.id, status=WAITING)
        log.info("job", extra={"facts": {"id": job.id, "status": CANCELLED if given_up else FAILED}})

    def _book(self, job: Job, wish: JobWish) -> Book:
        service = self._service
        place = self.store.place(job.id)
        return Book(
            place / BOOK,
            read_document(place / job.source),
            service.engine,
            service.load(wish.speech.voice),
            service.settings(wish.speech),
            wish.speech.seed,
            tokenizer=service.tokenizer,
            length=wish.clip_length,
        )
