"""Slices and thumbnails drawn from the stored images and maps; also hands out stored objects. Keeps no file.

What was drawn is kept in memory, up to a bound. A slice that cannot be drawn becomes a picture that says why.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse
from PIL import Image, ImageDraw
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.admin.web import words
from node.admin.web.gate import Gate, Visitor
from node.admin.web.site import Site
from node.domain.errors import OutOfReach, PermanentError
from node.domain.findings import Findings
from node.frames import MOST_FRAMES, UNREADABLE, frame_headers, is_multiframe
from node.maps import unpack
from node.outputs import drawing, overlay
from node.outputs.outlines import outlines
from node.outputs.source import numbers
from node.pixels import hounsfield

KEPT_BYTES = 128 * 2**20
KEPT_MAPS_BYTES = 96 * 2**20
KEPT_FILES_BYTES = 192 * 2**20
"""Room for one multi-frame object, which would else be read anew for each of its slices."""
AT_ONCE = 2
"""So many pictures are drawn at a time: the page must not take the machine from the worker."""
THUMBNAIL_PX = 144
PNG_LEVEL = 1
"""Quick rather than small: pictures go to a browser on the same network."""


class Kept:
    """The latest values up to a number of bytes; the least used go first."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value of `key`, made by `make` (value, bytes) where it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value, count = make()
        with self._lock:
            if key not in self._values and count <= self._most:
                self._values[key] = (value, count)
                self._held += count
            while self._held > self._most:
                _, (_, freed) = self._values.popitem(last=False)
                self._held -= freed
        return value


@dataclass(frozen=True)
class Slice:
    """Where one slice lies: a stored file, and the frame of it (from 0)."""

    path: str
    frame: int
    probabilities: dict[str, float] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Stack:
    """A series as it is paged through, along its normal where that is known."""

    series_uid: str
    study_uid: str
    slices: tuple[Slice, ...]
    findings: Findings | None = None
    maps_path: str | None = None
    key: int = 0
    """Index of the slice to open first."""
    analysed_at: float = 0.0
    """Pictures and maps of an earlier analysis are not shown for those of a later one."""


class Pictures:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._drawn, self._maps = Kept(KEPT_BYTES), Kept(KEPT_MAPS_BYTES)
        self._files = Kept(KEPT_FILES_BYTES)
        self._turns = threading.BoundedSemaphore(AT_ONCE)

    def stack(self, series_uid: str) -> Stack | None:
        """None for a series nobody received."""
        worklist = self._site.records.worklist
        found = worklist.series(series_uid)
        if found is None:
            return None
        files = worklist.files(series_uid)
        job = found["job"]
        findings = words.read_findings(job["findings"]) if job else None
        if job and found["revision"] > job["revision"] and _came_again(findings, files, job["created_at"]):
            findings = None
        by_uid = {row["sop_instance_uid"]: row["path"] for row in files}
        if findings and findings.slices and all(s.sop_instance_uid in by_uid for s in findings.slices):
            slices = tuple(
                Slice(by_uid[s.sop_instance_uid], (s.frame_number or 1) - 1, dict(s.probabilities))
                for s in findings.slices
            )
            study_uid = found["study_instance_uid"]
            best = key_index(findings)
            return Stack(series_uid, study_uid, slices, findings, job["maps_path"], best, job["analysed_at"])
        in_order = sorted(files, key=_place)
        slices = tuple(
            Slice(row["path"], frame)
            for row in in_order
            for frame in range(min(max(int(row["header"].get("frames") or 1), 1), MOST_FRAMES))
        )
        return Stack(series_uid, found["study_instance_uid"], slices, key=len(slices) // 2)

    def slice(self, stack: Stack, index: int, contour: bool, heat: bool) -> bytes:
        """PNG of one slice as it goes to the PACS, or without what was marked."""
        key = (stack.slices[index], stack.analysed_at, index, contour, heat)
        return self._kept(key, lambda: self._draw(stack, index, contour, heat), _words)

    def thumbnail(self, stack: Stack) -> bytes:
        """PNG of the key slice with the contour of the mask, no letters."""
        key = (stack.slices[stack.key], stack.analysed_at, "thumbnail")
        return self._kept(key, lambda: self._draw_thumbnail(stack), _small)

    def _kept(
        self, key: Hashable, draw: Callable[[], Image.Image], instead: Callable[[str], Image.Image]
    ) -> bytes:
        """What `draw` makes as PNG; where it cannot, what `instead` makes of the reason."""

        def make() -> tuple[bytes, int]:
            reason = ""
            with self._turns:
                try:
                    image = draw()
                except (OutOfReach, PermanentError) as error:
                    reason = str(error)
                except FileNotFoundError:
                    reason = "Its file is not stored any more."
                except (OSError, *UNREADABLE) as error:
                    reason = f"The stored image cannot be read: {type(error).__name__}"
            if reason:
                image = instead(reason)
            stream = io.BytesIO()
            image.save(stream, "PNG", compress_level=PNG_LEVEL)
            return stream.getvalue(), KEPT_BYTES + 1 if reason else stream.tell()  # it may come back

        made: bytes = self._drawn.get(key, make)
        return made

    def _draw(self, stack: Stack, index: int, contour: bool, heat: bool) -> Image.Image:
        ds, hu = self._pixels(stack.slices[index])
        mask, activation = self._marks(stack, index) if contour or heat else (None, None)
        rgb = overlay.render(
            hu,
            mask if contour else None,
            activation if heat else None,
            _legend(stack, index, ds),
        )
        return Image.fromarray(rgb)

    def _draw_thumbnail(self, stack: Stack) -> Image.Image:
        _, hu = self._pixels(stack.slices[stack.key])
        mask, _ = self._marks(stack, stack.key)
        grey = np.clip((hu - overlay.LOWER_HU) * (255 / (overlay.UPPER_HU - overlay.LOWER_HU)), 0, 255)
        image = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        scale = THUMBNAIL_PX / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height))
        pen = ImageDraw.Draw(image)
        for line in outlines(mask) if mask is not None else ():
            pen.line([(x * scale, y * scale) for x, y in line.tolist()], fill=drawing.CONTOUR, width=1)
        return image

    def _pixels(self, of: Slice) -> tuple[Dataset, np.ndarray]:
        """The header of the slice, and its HU."""
        file = self._site.file(of.path)
        stat = file.stat()
        key = (of.path, stat.st_ino, stat.st_size)  # a file may be replaced by a later one
        ds: Dataset = self._files.get(key, lambda: (dcmread(file), stat.st_size))
        hu = hounsfield(ds, of.frame)
        headers = frame_headers(ds) if is_multiframe(ds) else [ds]
        return headers[of.frame] if of.frame < len(headers) else ds, hu

    def _marks(self, stack: Stack, index: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Mask (rows, columns) and heat of one slice; None where the maps are gone."""
        if not stack.maps_path:
            return None, None
        path = stack.maps_path

        def make() -> tuple[Any, int]:
            try:
                maps = unpack(self._site.file(path).read_bytes())
            except FileNotFoundError:
                return None, 0
            packed = np.packbits(maps.masks, axis=2)  # an eighth of the memory
            return (packed, maps.masks.shape, maps.heat), packed.nbytes + maps.heat.nbytes

        found = self._maps.get((stack.maps_path, stack.analysed_at), make)
        if found is None or index >= found[1][0]:
            return None, None
        packed, shape, heat = found
        return np.unpackbits(packed[index], axis=1, count=shape[2]).astype(bool), heat[index]


def _came_again(findings: Findings | None, files: Sequence[dict[str, Any]], analysed_since: float) -> bool:
    """Other content came under the UIDs of what was analysed: its marks belong to no image that is here."""
    uids = {one.sop_instance_uid for one in findings.slices} if findings else set()
    return any(row["received_at"] > analysed_since for row in files if row["sop_instance_uid"] in uids)


def key_index(findings: Findings) -> int:
    """The slice that speaks loudest: of "any", else of whatever is there; the middle one else."""
    named = [findings.classes.get("any"), *findings.classes.values()]
    refs: list[tuple[str | None, int | None]] = [
        (s.sop_instance_uid, s.frame_number) for s in findings.slices
    ]
    for found in named:
        if found and (found.key_slice_uid, found.key_frame_number) in refs:
            return refs.index((found.key_slice_uid, found.key_frame_number))
    return len(refs) // 2


def _place(row: dict[str, Any]) -> tuple[float, float]:
    """Along the normal where position and orientation are known; else by InstanceNumber."""
    header = row["header"]
    number = float(header.get("instance_number") or 0)
    position, orientation = header.get("position"), header.get("orientation")
    if not position or not orientation:
        return 0.0, number
    return float(np.dot(np.cross(orientation[:3], orientation[3:]), position)), number


def _legend(stack: Stack, index: int, ds: Dataset) -> overlay.Legend:
    orientation, spacing = numbers(ds, "ImageOrientationPatient", 6), numbers(ds, "PixelSpacing", 2)
    values = stack.slices[index].probabilities
    result = f"any {words.probability(values['any'])}" if "any" in values else ""
    model = stack.findings.model if stack.findings else None
    present = [c for c in stack.findings.classes.values() if c.present] if stack.findings else []
    return overlay.Legend(
        title=f"slice {index + 1} / {len(stack.slices)}",
        result=result,
        footer=f"{model.name} {model.version}" if model else "",
        letters=drawing.sides(orientation) if orientation else (),
        column_spacing_mm=spacing[1] if spacing and spacing[1] > 0 else None,
        alarming=bool(present),
    )


def _small(_: str) -> Image.Image:
    image = Image.new("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
    middle = (THUMBNAIL_PX / 2, THUMBNAIL_PX / 2)
    drawing.write(ImageDraw.Draw(image), middle, "no image", 18, drawing.FAINT, "mm")
    return image


def _words(text: str) -> Image.Image:
    image = Image.new("RGB", (512, 512))
    pen = ImageDraw.Draw(image)
    line = ""
    lines = []
    for word in text.split():
        if line and drawing.font(16).getlength(f"{line} {word}") > 470:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    for number, words_ in enumerate(["This slice cannot be shown.", *lines, line][:20]):
        drawing.write(pen, (20, 30 + 24 * number), words_, 16, drawing.AMBER if not number else drawing.TEXT)
    return image


def routes(site: Site, gate: Gate) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    pictures = Pictures(site)

    def stack_of(series_uid: str) -> Stack:
        stack = pictures.stack(series_uid)
        if stack is None or not stack.slices:
            raise HTTPException(404, "no such series, or none of its images is stored any more")
        return stack

    @router.get("/picture/{index}/{series_uid:path}")
    def picture(
        request: Request,
        index: int,
        series_uid: str,
        contour: bool = True,
        heat: bool = True,
        visitor: Visitor = gate.viewer,
    ) -> Response:
        stack = stack_of(series_uid)
        site.look(visitor, "picture", request, stack.study_uid, often=True)
        if not 0 <= index < len(stack.slices):
            raise HTTPException(404, f"the series has {len(stack.slices)} slices")
        return Response(pictures.slice(stack, index, contour, heat), media_type="image/png")

    @router.get("/thumbnail/{series_uid:path}")
    def thumbnail(request: Request, series_uid: str, visitor: Visitor = gate.viewer) -> Response:
        stack = stack_of(series_uid)
        site.look_at_thumbnail(visitor, request, stack.study_uid)
        return Response(pictures.thumbnail(stack), media_type="image/png")

    @router.get("/object/{sop_instance_uid:path}")
    def download(sop_instance_uid: str, visitor: Visitor = gate.viewer) -> Response:
        """A stored object, as it was sent."""
        found = site.records.worklist.object(sop_instance_uid)
        if found is None:
            raise HTTPException(404, "there is no such object")
        file: FilePath = site.file_to_show(found["path"])
        if not file.is_file():
            raise HTTPException(404, "the object's file is no longer stored")
        detail = f"{found['output']} {sop_instance_uid}"
        site.note(visitor, "download", found["study_instance_uid"], detail)
        return FileResponse(file, media_type="application/dicom", filename=file.name)

    return router
