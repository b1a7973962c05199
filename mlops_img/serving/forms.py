"""Reading multipart forms: what is wrong with one is answered by its reason."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mlops_img.serving.errors import Code, RequestError

# Of files, and of other fields. starlette's own limits too; they are given so that the messages say the same.
MAX_PARTS = 1000
MAX_FIELD_BYTES = 2**20
ENDED_EARLY = "The body ended early: the last boundary of the form is missing or incomplete."
# What the parsers' messages contain, and what is answered. The first that fits counts.
REASONS = (
    ("Too many files", Code.TOO_LARGE, f"The form has too many parts: at most {MAX_PARTS:,} files."),
    ("Too many fields", Code.TOO_LARGE, f"The form has too many parts: at most {MAX_PARTS:,} fields."),
    ("Part exceeded", Code.TOO_LARGE, f"A field of the form is too large: at most {MAX_FIELD_BYTES:,} bytes."),
    ("header size", Code.TOO_LARGE, "A header of a part, such as its file name, is too long: at most 4,000 bytes."),
    ("header count", Code.TOO_LARGE, "A part has too many headers: at most 8."),
    ("Boundary length", Code.BAD_REQUEST, "The boundary is too long: at most 256 characters."),
    ("Missing boundary", Code.BAD_REQUEST, "The form cannot be read: send multipart/form-data with a boundary."),
    ('"name" must be', Code.BAD_REQUEST, "A part of the form has no name in its Content-Disposition header."),
    ("boundary", Code.BAD_REQUEST, "The form does not use the boundary that its Content-Type header names."),
    ("header", Code.BAD_REQUEST, "The headers of a part of the form cannot be read."),
)
UNREADABLE = "The form cannot be read: send multipart/form-data with a boundary."


class FormRoute(APIRoute):
    """A route that reads its form itself: FastAPI would answer everything that is wrong with it in the same words."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer

        async def read_and_answer(request: Request) -> Response:
            request = FormRequest(request.scope, request.receive)
            await request.form()
            return await answer(request)

        return read_and_answer


class FormRequest(Request):
    """A request with a multipart form. Once read the form is kept, so FastAPI finds it."""

    async def _get_form(self, **limits: Any) -> FormData:
        if self._form is None:
            try:
                self._form = await _Parser(
                    self.headers,
                    self.stream(),
                    max_files=MAX_PARTS,
                    max_fields=MAX_PARTS,
                    max_part_size=MAX_FIELD_BYTES,
                ).parse()
            except MultiPartException as error:
                raise _reason(error) from None
            except ClientDisconnect:
                raise RequestError(Code.BAD_REQUEST, "The body ended early.") from None
            # The sender names the character set, and Python's decoders have many ways to fail.
            except (ValueError, LookupError, ArithmeticError, TypeError):
                raise RequestError(Code.BAD_REQUEST, "The text of a part of the form cannot be decoded.") from None
        return self._form


class _Parser(MultiPartParser):
    """starlette's parser, which takes a form without an end for a whole one, and its last file too."""

    ended = False

    def on_end(self) -> None:
        self.ended = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self.ended:
            await form.close()
            raise RequestError(Code.BAD_REQUEST, ENDED_EARLY)
        return form


def _reason(error: MultiPartException) -> RequestError:
    """Return the answer to a form that a parser refused; python-multipart's own message is the cause of starlette's."""
    said = f"{error.message} {error.__cause__ or ''}"
    for part, code, message in REASONS:
        if part in said:
            return RequestError(code, message)
    return RequestError(Code.BAD_REQUEST, UNREADABLE)
