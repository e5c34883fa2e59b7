"""Run by tests: the screen on this terminal, with a chat that gives these answers."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from edgekit.chat.screen import run_screen

os.open(os.ttyname(0), os.O_RDWR)  # the leader of a session gets its terminal so
made = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
said, fake_chat = made["said"], made["FakeChat"]
counting = said("# Words\n\n")
for start in range(0, 400, 100):
    counting += said(" ".join(f"w{number}" for number in range(start, start + 100)) + " ")
    counting.append(0.6)  # while nothing is drawn, a resize and a row of the answer cannot cross
answers = {
    "think": said("**yes**, and more", think="so it is. " * 30, delay_s=0.01),
    "talk": said("on and on " * 400, delay_s=0.01),
    "count": [*counting, *said("\n\nend")],
}
run_screen(fake_chat(scripts=[answers[name] for name in sys.argv[1:]]), show_stats=False)
sys.stdout.write("left\n")
