"""Servers of a process that was killed before it could end them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from cutover.devstack import throwaway
from cutover.devstack.cluster import Cluster, free_port

#: Runs a server in a folder of its own until it is killed.
PROGRAM = """
import sys, time
from cutover.devstack import throwaway
from cutover.devstack.cluster import Cluster
folder = throwaway.make(sys.argv[1])
Cluster("one", folder / "one", int(sys.argv[2]), {"fsync": "off"}).start()
print(folder, flush=True)
time.sleep(3600)
"""


def test_what_a_killed_process_has_left_is_found_by_its_folder_and_ended_and_nothing_else() -> None:
    prefix, port = f"cutover-thrown-{uuid4().hex[:8]}-", free_port()
    owner = subprocess.Popen([sys.executable, "-c", PROGRAM, prefix, str(port)], stdout=subprocess.PIPE, text=True)
    mine = throwaway.make(prefix)
    try:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        server = Cluster("one", folder / "one", port)
        assert server.ready()
        assert throwaway.abandoned(prefix) == []
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        assert server.ready()
        assert throwaway.abandoned(prefix) == [folder]
        throwaway.end(folder)
        assert not server.ready()
        assert not folder.exists()
        assert mine.exists()
    finally:
        owner.kill()
        owner.communicate()
        shutil.rmtree(mine)
