"""Sessions of Google's ADK as sessions here: ``PerdureSessionService`` is a ``BaseSessionService``.

A session of ADK's is one here: an event is an entry ``event``, and its state is the ``value``, replaced together with
each event. What an app and a user have in common are the values of two more, whose entries say what changed.

Facts of the interface: ``google.adk.sessions`` 2.13.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events.event import Event
from google.adk.sessions import BaseSessionService, Session, State
from google.adk.sessions.base_session_service import GetSessionConfig, ListSessionsResponse
from pydantic_core import PydanticSerializationError, to_jsonable_python

from perdure.client.server import ServerClient
from perdure.errors import InvalidValue, LogConflict, NotFound
from perdure.integrations.keys import joined
from perdure.model import SessionInfo

try:
    from google.adk.errors._stale_session_error import StaleSessionError
except ImportError:  # before 2.0 it was a ValueError, which it is still
    StaleSessionError = ValueError  # type: ignore[misc,assignment]  # of the class that was imported above

HINT = "Keep JSON values, and files as artifacts."
TRIES = 20  # of a change of what is shared, that others were in the way of

_Values = dict[str, Any]


class PerdureSessionService(BaseSessionService):
    """Keeps sessions in the context log of a Perdure server, for ``Runner(session_service=...)``.

    client: of the server (None: of this home's). ``StaleSessionError``: another program appended to the session since
    it was loaded. ``InvalidValue``: a state or an event that is no JSON. ``Unavailable``: the server is away.
    """

    def __init__(self, client: ServerClient | None = None) -> None:
        self._sessions = (client or ServerClient()).sessions

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: _Values | None = None,
        session_id: str | None = None,
    ) -> Session:
        """A new session. ``AlreadyExistsError``."""
        wanted = (session_id or "").strip() or str(uuid.uuid4())
        return await asyncio.to_thread(self._create, app_name, user_id, wanted, state or {})

    def _create(self, app: str, user: str, session_id: str, state: _Values) -> Session:
        own, of_user, of_app = _parted(_plain(state, "the state"))
        now = time.time()
        value = {"app": app, "user": user, "id": session_id, "state": own, "updated": now}
        tags = {"framework": "adk", "part": "session", "app": joined(app), "user": joined(user)}
        begun = [{"kind": "created", "payload": {"state": own}}]
        try:
            made = self._sessions.append(_name(app, user, session_id), begun, tags=tags, expected_seq=0, value=value)
        except LogConflict as error:
            raise AlreadyExistsError(f"Session with id {session_id} already exists.") from error
        self._share(app, user, of_user, of_app)
        return self._session(made, self._shared(app, user))

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """A session with its events, as ``config`` limits them; None: there is none."""
        return await asyncio.to_thread(self._get, app_name, user_id, session_id.strip(), config or GetSessionConfig())

    def _get(self, app: str, user: str, session_id: str, config: GetSessionConfig) -> Session | None:
        name, events = _name(app, user, session_id), list[Event]()
        try:
            found = self._sessions.get(name)
            newest = self._sessions.newest(name, before=found.seq + 1, limit=config.num_recent_events, kind="event")
            for entry in newest:
                event = Event.model_validate_json(json.dumps(entry.payload))  # in which bytes are in base 64
                if config.after_timestamp is not None and event.timestamp < config.after_timestamp:
                    break
                events.append(event)
        except NotFound:
            return None
        session = self._session(found, self._shared(app, user))
        session.events = events[::-1]
        return session

    async def list_sessions(self, *, app_name: str, user_id: str | None = None) -> ListSessionsResponse:
        """Sessions of an app, or of one user of it, without their events; the one that was used last at the end."""
        return await asyncio.to_thread(self._list, app_name, user_id)

    def _list(self, app: str, user: str | None) -> ListSessionsResponse:
        tags = {"framework": "adk", "part": "session", "app": joined(app)}
        found = list(self._sessions.all(tags if user is None else {**tags, "user": joined(user)}))
        shared = {one: self._shared(app, one) for one in {info.value["user"] for info in found if info.value}}
        sessions = [self._session(info, shared[info.value["user"]]) for info in found if info.value]
        sessions.sort(key=lambda session: (session.last_update_time, session.user_id, session.id))
        return ListSessionsResponse(sessions=sessions)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Delete a session; what its app and its user have in common stays."""
        try:
            await asyncio.to_thread(self._sessions.delete, _name(app_name, user_id, session_id.strip()))
        except NotFound:
            pass

    async def get_user_state(self, *, app_name: str, user_id: str) -> _Values:
        """What the sessions of a user have in common, without the prefix ``user:``."""
        return await asyncio.to_thread(self._state_of, joined("adk.user", app_name, user_id))

    async def append_event(self, session: Session, event: Event) -> Event:
        """Append an event, with what it changes of the state. A partial one is not kept."""
        if event.partial:
            return event
        self._apply_temp_state(session, event)
        event = self._trim_temp_delta_state(event)
        await asyncio.to_thread(self._append, session, event)
        return self._commit_event_to_session(session, event)

    def _append(self, session: Session, event: Event) -> None:
        name = _name(session.app_name, session.user_id, session.id)
        delta = _plain(event.actions.state_delta, f"what event {event.id} changes") if event.actions else {}
        own, of_user, of_app = _parted(delta)
        entry = {"kind": "event", "payload": _payload(event)}
        marker = session._storage_update_marker
        try:
            before = self._sessions.get(name)
            if marker is not None and int(marker) != before.seq:
                raise _stale(session)
            value = {**before.value, "state": {**before.value["state"], **own}, "updated": event.timestamp}
            after = self._sessions.append(
                name, [entry], expected_seq=before.seq, value=value, expected_version=before.version
            )
        except NotFound as error:
            raise SessionNotFoundError(f"Session {session.id} not found.") from error
        except LogConflict as error:
            raise _stale(session) from error
        self._share(session.app_name, session.user_id, of_user, of_app)
        session.last_update_time = event.timestamp
        session._storage_update_marker = str(after.seq)

    def _session(self, info: SessionInfo, shared: _Values) -> Session:
        value = info.value
        session = Session(
            id=value["id"],
            app_name=value["app"],
            user_id=value["user"],
            state={**value["state"], **shared},
            last_update_time=value["updated"],
        )
        session._storage_update_marker = str(info.seq)
        return session

    # -- what an app and a user have in common

    def _shared(self, app: str, user: str) -> _Values:
        of_app, of_user = self._state_of(joined("adk.app", app)), self._state_of(joined("adk.user", app, user))
        prefixed = {State.APP_PREFIX + name: what for name, what in of_app.items()}
        return prefixed | {State.USER_PREFIX + name: what for name, what in of_user.items()}

    def _share(self, app: str, user: str, of_user: _Values, of_app: _Values) -> None:
        for name, delta in ((joined("adk.app", app), of_app), (joined("adk.user", app, user), of_user)):
            for _ in range(TRIES if delta else 0):
                made = self._sessions.make(name, tags={"framework": "adk", "part": "state"}, value={})
                changed = [{"kind": "state", "payload": delta}]
                try:
                    self._sessions.append(name, changed, value={**made.value, **delta}, expected_version=made.version)
                    break
                except LogConflict:
                    continue  # another session's change came first
            else:
                if delta:
                    raise LogConflict(f"the state {name} is changed all the time", hint="Try again.")

    def _state_of(self, name: str) -> _Values:
        try:
            return dict(self._sessions.get(name).value)
        except NotFound:
            return {}


def _parted(state: Mapping[str, Any]) -> tuple[_Values, _Values, _Values]:
    """Of the session, of the user, of the app; what is temporary is of none."""
    own, of_user, of_app = _Values(), _Values(), _Values()
    for name, what in state.items():
        if name.startswith(State.APP_PREFIX):
            of_app[name.removeprefix(State.APP_PREFIX)] = what
        elif name.startswith(State.USER_PREFIX):
            of_user[name.removeprefix(State.USER_PREFIX)] = what
        elif not name.startswith(State.TEMP_PREFIX):
            own[name] = what
    return own, of_user, of_app


def _plain(state: Mapping[str, Any], what: str) -> _Values:
    """As JSON has it. InvalidValue."""
    try:
        plain: _Values = to_jsonable_python(state)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{what} cannot be kept: {error}", hint=HINT) from error
    return plain


def _payload(event: Event) -> _Values:
    try:
        payload: _Values = event.model_dump(exclude_none=True, mode="json")
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise InvalidValue(f"event {event.id} cannot be kept: {error}", hint=HINT) from error
    return payload


def _name(app: str, user: str, session_id: str) -> str:
    return joined("adk", app, user, session_id)


def _stale(session: Session) -> Exception:
    return StaleSessionError(
        f"session {session.id} was appended to by another program since it was loaded: load it again"
    )
