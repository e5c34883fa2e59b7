"""The screen itself, typed at through a pipe and looked at through a terminal emulator."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyte
import pytest
from prompt_toolkit.data_structures import Size
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input

from edgekit.chat.notices import Notices
from edgekit.chat.screen import run_screen
from edgekit.chat.terminal import SteadyOutput
from edgekit.errors import BackendError
from edgekit.runtime.piece import Piece, ToolCall

if TYPE_CHECKING:
    from tests.chat.conftest import FakeAnswer, FakeChat

MakeChat = Callable[..., "FakeChat"]
ENTER, CTRL_C, CTRL_D, CTRL_T, CTRL_U = "\r", "\x03", "\x04", "\x14", "\x15"
CALL = Piece(kind="call", call=ToolCall(id="1", name="f", arguments={"x": 1}))


def thinking(text: str) -> Piece:
    return Piece(kind="thinking", text=text)


def answer(text: str) -> Piece:
    return Piece(kind="answer", text=text)


class Terminal(io.StringIO):
    """Where the screen writes to, and a person who looks at it and types."""

    def __init__(self, columns: int = 60, rows: int = 20) -> None:
        super().__init__()
        self._screen = pyte.HistoryScreen(columns, rows, history=5000)
        self._stream = pyte.Stream(self._screen)
        self._lock = threading.Lock()
        self._send: Callable[[str], None] = lambda text: None
        self.size = Size(rows=rows, columns=columns)
        self.error: BaseException | None = None

    def write(self, text: str) -> int:
        with self._lock:
            self._stream.feed(text)
        return len(text)

    @property
    def shown(self) -> str:
        """What stands on the screen."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    @property
    def all(self) -> str:
        """The same with what has scrolled away."""
        with self._lock:
            above = [
                "".join(row[x].data for x in range(self.size.columns)).rstrip()
                for row in self._screen.history.top
            ]
        return "\n".join([*above, self.shown])

    def resize(self, columns: int) -> None:
        with self._lock:
            self._screen.resize(self.size.rows, columns)
            self.size = Size(rows=self.size.rows, columns=columns)

    def type(self, text: str) -> None:
        self._send(text)

    def see(self, *texts: str) -> None:
        """Wait until all this stands on the screen."""
        self.until(lambda: all(text in self.shown for text in texts), repr(texts))

    def until(self, is_so: Callable[[], bool], what: str = "") -> None:
        end = time.monotonic() + 5
        while not is_so():
            assert time.monotonic() < end, f"never came: {what}\n{self.shown}"
            time.sleep(0.005)

    def run(self, chat: FakeChat, person: Callable[[], None], **settings: Any) -> None:
        """A dialogue until the person has done everything; then Ctrl-D."""
        output = SteadyOutput(self, lambda: self.size, term="xterm", enable_cpr=False)
        with create_pipe_input() as source:
            self._send = source.send_text

            def act() -> None:
                try:
                    self.see("> ")
                    person()
                except BaseException as exc:
                    self.error = exc
                    source.send_text(CTRL_C * 4)  # whatever it is doing
                source.send_text(CTRL_U + CTRL_D)

            thread = threading.Thread(target=act)
            thread.start()
            settings = {"show_stats": False, "history": InMemoryHistory(), **settings}
            try:
                run_screen(chat, source=source, output=output, **settings)
            finally:
                thread.join()
            if self.error is not None:
                raise self.error


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An answer waits here until it is opened."""
    event = threading.Event()
    yield event
    event.set()


def kept(chat: FakeChat) -> FakeAnswer:
    [made] = chat.kept
    return made


def test_a_question_is_answered_above_the_input(terminal: Terminal, make_chat: MakeChat) -> None:
    def person() -> None:
        terminal.see("fake-8b: /help lists the commands", "ask something")
        terminal.type(f"hi{ENTER}")
        terminal.see("> hi\n\nYou said: hi\n\n> ask something\nfake-8b · ")

    terminal.run(make_chat(), person)
    assert "ask something" not in terminal.shown  # the terminal is left clean
    assert terminal.shown.endswith("You said: hi")


def test_the_answer_grows_while_it_is_made(
    terminal: Terminal, make_chat: MakeChat, gate: threading.Event
) -> None:
    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.see("one\n\nhalf a", "fake-8b")
        gate.set()
        terminal.see("one\n\nhalf a line\n\n> ask")

    terminal.run(make_chat([answer("one\n\nhalf a"), gate, answer(" line")]), person)


def test_thinking_folds_and_unfolds(
    terminal: Terminal, make_chat: MakeChat, gate: threading.Event
) -> None:
    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.see("▸ thinking… 1 tokens")
        assert "hm, so" not in terminal.shown
        terminal.type(CTRL_T)
        terminal.see("hm, so", "▾ thinking…")
        terminal.type(CTRL_T)
        terminal.until(lambda: "hm, so" not in terminal.shown)
        gate.set()
        terminal.see("▸ thought for 1 tokens", "\n\nyes\n\n> ask")
        terminal.type(f"/thinking{ENTER}")
        terminal.see("> /thinking\nhm, so\n\n> ask")

    terminal.run(make_chat([thinking("hm, so"), gate, answer("yes")]), person)


def test_the_answer_may_be_asked_for_while_it_is_thought_about(
    terminal: Terminal, make_chat: MakeChat, gate: threading.Event
) -> None:
    def person() -> None:
        terminal.type(f"/answer{ENTER}")
        terminal.see("error: nothing is being thought")
        terminal.type(f"hi{ENTER}")
        terminal.see("thinking…")
        terminal.type(f"/answer{ENTER}")
        terminal.see("\n\nyes\n\n> ask")

    terminal.run(make_chat([thinking("hm"), gate, thinking("and"), answer("yes")]), person)


def test_what_is_typed_ahead_waits(
    terminal: Terminal, make_chat: MakeChat, gate: threading.Event
) -> None:
    def person() -> None:
        terminal.type(f"one{ENTER}")
        terminal.see("first")
        terminal.type(f"two{ENTER}")
        terminal.see("  next: two")
        terminal.type(f"/think off{ENTER}")
        terminal.see("thinking is off, from the next answer on")
        terminal.type(f"/reset{ENTER}")
        terminal.see("error: /reset waits for the answer to end")
        terminal.type("half")
        gate.set()
        terminal.see("> two\n\nYou said: two\n\n> half\n")

    chat = make_chat([answer("first"), gate])
    terminal.run(chat, person)
    assert chat.think == "off"


@pytest.mark.parametrize(
    ("script", "sign"),
    [([], "reading"), ([thinking("hm")], "thinking…"), ([answer("so")], "\n\nso\n")],
    ids=["prefill", "thinking", "answering"],
)
def test_ctrl_c_stops_the_answer_and_not_the_program(
    terminal: Terminal,
    make_chat: MakeChat,
    gate: threading.Event,
    script: list[Piece],
    sign: str,
) -> None:
    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.see(
            {"": "reading", "hm": "thinking…", "so": "so"}["".join(p.text for p in script)]
        )
        terminal.type(f"next{ENTER}")
        terminal.see("next: next")
        terminal.type(CTRL_C)
        terminal.see("stopped\n\n> next\n")

    chat = make_chat([*script, gate, answer("never")])
    terminal.run(chat, person)
    assert kept(chat).text == "".join(p.text for p in script if p.kind == "answer")
    assert kept(chat).generation.finish_reason is None


def test_ctrl_c_takes_away_what_is_typed_and_leaves_the_second_time(
    terminal: Terminal, make_chat: MakeChat
) -> None:
    def person() -> None:
        terminal.type("words")
        terminal.see("> words")
        terminal.type(CTRL_C)
        terminal.see("> ask something")
        terminal.type(CTRL_C)
        terminal.see("Ctrl-C again leaves")
        terminal.type("x\x7f")  # anything typed: the first one is forgotten
        terminal.see("> ask something")
        terminal.type(CTRL_C)
        terminal.until(lambda: terminal.shown.count("Ctrl-C again leaves") == 2)
        terminal.type(CTRL_C)
        terminal.until(lambda: "fake-8b · " not in terminal.shown)

    terminal.run(make_chat(), person)


def test_leaving_in_the_middle_keeps_the_answer(
    terminal: Terminal, make_chat: MakeChat, gate: threading.Event
) -> None:
    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.see("so far")
        terminal.type(CTRL_D)

    chat = make_chat([answer("so far"), gate])
    terminal.run(chat, person)
    assert kept(chat).text == "so far"
    assert terminal.shown.endswith("> hi\n\nso far")


def test_the_results_of_calls_are_typed(terminal: Terminal, make_chat: MakeChat) -> None:
    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.see('⚙ f({"x": 1})', "result of f?", "\nf =\n")
        terminal.type(f"42{ENTER}")
        terminal.see("> 42\n\nYou said: 42\n\n> ask")

    terminal.run(make_chat([CALL]), person)


def test_ctrl_c_leaves_calls_without_results(terminal: Terminal, make_chat: MakeChat) -> None:
    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.see("\nf =\n")
        terminal.type(CTRL_C)
        terminal.see("the calls stay without results", "> ask")

    chat = make_chat([CALL])
    terminal.run(chat, person)
    assert chat.messages[-1]["content"] == "the user gave no result"


def test_a_question_is_changed_in_the_input_line(terminal: Terminal, make_chat: MakeChat) -> None:
    def person() -> None:
        terminal.type(f"one{ENTER}")
        terminal.see("You said: one")
        terminal.type(f"/edit{ENTER}")
        terminal.see("edit> one")
        terminal.type(f" more{ENTER}")
        terminal.see("> one more\n\nYou said: one more\n\n> ask")

    chat = make_chat()
    terminal.run(chat, person)
    assert len(chat.messages) == 2


def test_a_message_that_was_refused_can_be_sent_again(
    terminal: Terminal, make_chat: MakeChat
) -> None:
    def person() -> None:
        terminal.type(f"too long{ENTER}")
        terminal.see("error: the last message needs 8 tokens\nhint: shorten it", "> too long\n")
        terminal.type(CTRL_C + f"one{ENTER}")
        terminal.see("You said: one")
        terminal.type(f"/edit{ENTER}")
        terminal.see("edit> one")
        terminal.type(f" is too long{ENTER}")
        terminal.see("edit> one is too long")

    terminal.run(make_chat(limit=6), person)


def test_an_error_of_the_worker_is_a_line(terminal: Terminal, make_chat: MakeChat) -> None:
    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.see("so far\n\nerror: the device is gone\nhint: plug it in\n\n> ask")

    error = BackendError("the device is gone", hint="plug it in")
    terminal.run(make_chat([answer("so far"), error]), person)


def test_a_bug_in_the_worker_is_raised_at_the_end(terminal: Terminal, make_chat: MakeChat) -> None:
    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.until(lambda: "fake-8b · " not in terminal.shown)

    chat = make_chat([answer("so far"), ZeroDivisionError("a bug")])
    with pytest.raises(ZeroDivisionError):
        terminal.run(chat, person)
    assert kept(chat).text == "so far"
    assert "fake-8b · " not in terminal.shown


def test_lines_are_pasted_and_typed(terminal: Terminal, make_chat: MakeChat) -> None:
    def person() -> None:
        terminal.type("\x1b[200~a\r\nb\x1b[201~\x1b\rc\nd")  # pasted, Alt-Enter, Ctrl-J
        terminal.see("> a\n  b\n  c\n  d")
        terminal.type(ENTER)
        terminal.see("You said: a\nb\nc\nd")

    terminal.run(make_chat(), person)


def test_commands_are_completed(terminal: Terminal, make_chat: MakeChat) -> None:
    def person() -> None:
        terminal.type("/th")
        terminal.see("/thinking  show the last thinking")
        terminal.type("\t\t")
        terminal.see("> /thinking\n")
        terminal.type(ENTER)  # takes the completion, not the line
        terminal.until(lambda: "show the last" not in terminal.shown)
        terminal.type(ENTER)
        terminal.see("there was no thinking yet")

    terminal.run(make_chat(), person)


def test_the_measures_and_notices_are_lines(terminal: Terminal, make_chat: MakeChat) -> None:
    notices = Notices()

    def person() -> None:
        notices("note: the context is full")
        terminal.type(f"hi{ENTER}")
        terminal.see("note: the context is full", "You said: hi\n\n3 new tokens, TTFT 1 ms\n\n>")

    terminal.run(make_chat(), person, show_stats=True, notices=notices)


def test_a_new_size_leaves_nothing_behind(
    terminal: Terminal, make_chat: MakeChat, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTERM_VERSION", "1")  # as pyte, it does not wrap what stands there
    monkeypatch.delenv("TMUX", raising=False)

    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.see("two words")
        for number, columns in enumerate((40, 30, 50), 1):
            terminal.resize(columns)
            terminal.type("x")
            terminal.see(f"> {'x' * number}\nfake-8b")
            assert terminal.all.count("two words") == 1
        gate.set()
        terminal.see("two words and more\n\n> xxx")

    terminal.run(make_chat([answer("one\n\ntwo words"), gate, answer(" and more")]), person)
    assert terminal.all.count("one") == 1


def test_a_long_answer_is_all_there(terminal: Terminal, make_chat: MakeChat) -> None:
    numbers = "\n\n".join(f"line {n} of 日本 🙂" for n in range(300))

    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.see("line 299")

    terminal.run(
        make_chat([answer(numbers[at : at + 4]) for at in range(0, len(numbers), 4)]), person
    )
    # pyte shows a wide character in two cells, the second one empty
    lines = [line for line in terminal.all.split("\n") if line.startswith("line")]
    assert lines == [f"line {n} of 日本 🙂" for n in range(300)]


def test_what_the_model_says_cannot_steer_the_terminal(
    terminal: Terminal, make_chat: MakeChat
) -> None:
    def person() -> None:
        terminal.type(f"hi{ENTER}")
        terminal.see("safe[2J[10;10Hhere\n\n> ask")

    terminal.run(make_chat([answer("safe\x1b[2J\x1b[10;10H"), answer("here")]), person)
