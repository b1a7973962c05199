"""Reading multipart forms, with an error message for each thing that can be wrong with one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, get_args, get_origin

from fastapi import params
from fastapi.routing import APIRoute
from pydantic.fields import FieldInfo
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from mlops_img.serving.errors import Code, RequestError

# Limits of the files, and of the other fields. They are Starlette's defaults, set here so that the messages below
# state the limits that apply.
MAX_PARTS = 1000
MAX_FIELD_BYTES = 2**20
ENDED_EARLY = "The body ended early: the last boundary of the form is missing or incomplete."
# Text in a message of the parsers, and the error that it becomes. The first match counts.
REASONS = (
    ("Too many files", Code.TOO_LARGE, f"The form has too many parts: at most {MAX_PARTS:,} files."),
    ("Too many fields", Code.TOO_LARGE, f"The form has too many parts: at most {MAX_PARTS:,} fields."),
    ("Part exceeded", Code.TOO_LARGE, f"A field of the form is too large: at most {MAX_FIELD_BYTES:,} bytes."),
    ("header size", Code.TOO_LARGE, "A header of a part, such as its file name, is too long: at most 4,000 bytes."),
    ("header count", Code.TOO_LARGE, "A part has too many headers: at most 8."),
    ("Boundary length", Code.BAD_REQUEST, "The boundary is too long: at most 256 characters."),
    ("Missing boundary", Code.BAD_REQUEST, "The form cannot be parsed: send multipart/form-data with a boundary."),
    ('"name" must be', Code.BAD_REQUEST, "A part of the form has no name in its Content-Disposition header."),
    ("boundary", Code.BAD_REQUEST, "The form does not use the boundary in its Content-Type header."),
    ("header", Code.BAD_REQUEST, "The headers of a part of the form cannot be parsed."),
)
UNREADABLE = "The form cannot be parsed: send multipart/form-data with a boundary."


class FormRoute(APIRoute):
    """A route that reads its form itself, since FastAPI has one error message for everything that is wrong with one.

    Query parameters and form fields that the route does not declare are rejected, as are repeated and empty fields.
    """

    @property
    def takes_form(self) -> bool:
        """Whether the route declares form fields or files."""
        return self.body_field is not None and isinstance(self.body_field.field_info, params.Form)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        handle = super().get_route_handler()
        if not self.takes_form:
            return handle
        assert self.body_field is not None
        fields: Mapping[str, FieldInfo] = self.body_field.field_info.annotation.model_fields  # type: ignore[union-attr]
        repeatable = {field.alias or name: _is_list(field.annotation) for name, field in fields.items()}
        parameters = {field.alias for field in self.dependant.query_params}

        async def read_and_answer(request: Request) -> Response:
            request = FormRequest(request.scope, request.receive)
            for name in request.query_params:
                if name not in parameters:
                    raise _invalid(f"Unknown query parameter {name[:40]!r}: send it as a field of the form.")
            _check_fields(await request.form(), repeatable)
            return await handle(request)

        return read_and_answer


def _check_fields(form: FormData, repeatable: Mapping[str, bool]) -> None:
    """Reject unknown, repeated and empty fields. `repeatable` says of each declared field whether it is a list."""
    sent = Counter(name for name, _ in form.multi_items())
    for name, value in form.multi_items():
        if name not in repeatable:
            raise _invalid(f"Unknown form field {name[:40]!r}: the fields are {' and '.join(repeatable)}.")
        if sent[name] > 1 and not repeatable[name]:
            raise _invalid(f"{name}: send this field once.")
        if value == "":
            raise _invalid(f"{name}: this field is empty.")


def _is_list(annotation: Any) -> bool:
    return any(get_origin(each) in (list, tuple, set) for each in (annotation, *get_args(annotation)))


def _invalid(message: str) -> RequestError:
    return RequestError(Code.INVALID_PARAMETER, message)


class FormRequest(Request):
    """A request with a multipart form, which is read once: FastAPI gets it from here."""

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
            except (MultiPartException, FormParserError) as error:
                raise _error_of(error) from None
            except ClientDisconnect:
                raise RequestError(Code.BAD_REQUEST, "The body ended early.") from None
            # The client names the character set, and Python's decoders raise many kinds of exceptions.
            except (ValueError, LookupError, ArithmeticError, TypeError):
                raise RequestError(Code.BAD_REQUEST, "The text of a part of the form cannot be decoded.") from None
        return self._form


class _Parser(MultiPartParser):
    """Starlette's parser, which accepts a form whose end is missing, and with it a file that was cut short."""

    ended = False

    def on_end(self) -> None:
        self.ended = True

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self.ended:
            await form.close()
            raise RequestError(Code.BAD_REQUEST, ENDED_EARLY)
        return form


def _error_of(error: MultiPartException | FormParserError) -> RequestError:
    """Return the error for a form that a parser rejected: Starlette's, or python-multipart's, by itself or as cause."""
    text = f"{error} {error.__cause__ or ''}"
    for part, code, message in REASONS:
        if part in text:
            return RequestError(code, message)
    return RequestError(Code.BAD_REQUEST, UNREADABLE)
