"""Whole books: a text becomes clips in a folder that can be gone on with after a kill at any point, then one file.

document = read_document("book.epub")  # chapters of paragraphs: document.py, epub.py, markdown.py
with Book("folder", document, engine, voice, settings, seed=7) as book:  # what each clip says: plan.py, manifest.py
    book.render()  # the clips that are not there yet
    book.join(".flac")  # pauses, loudness, one file: join.py
"""

from ..fitting import fitting
from .book import Book
from .document import Chapter, Document, read_document
from .join import FORMATS, Joining
from .plan import Passage, plan

__all__ = ["FORMATS", "Book", "Chapter", "Document", "Joining", "Passage", "fitting", "plan", "read_document"]
