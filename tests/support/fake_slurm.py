"""A Slurm of this machine: ``sbatch``, ``srun`` and ``sacct`` that run a job array here, side by side."""

import os
import sys
from pathlib import Path
from typing import Dict

__all__ = ["install"]

SBATCH = """#!{python}
import os, re, shutil, subprocess, sys
shutil.copy(sys.argv[-1], {place!r} + "/script")
first, last = re.search(r"#SBATCH --array=(\\d+)-(\\d+)", open(sys.argv[-1]).read()).groups()
for task in range(int(first), int(last) + 1):
    slurm = dict(JOB_ID=str(770 + task), ARRAY_JOB_ID="77", ARRAY_TASK_ID=str(task), NTASKS="1", PROCID="0",
                 LOCALID="0", NODEID="0", JOB_NUM_NODES="1", JOB_NODELIST="localhost", JOB_NAME="app")
    environment = {{**os.environ, **{{"SLURM_" + name: value for name, value in slurm.items()}}}}
    with open({place!r} + "/output-" + str(task), "w") as output:
        subprocess.Popen(["bash", sys.argv[-1]], env=environment, stdout=output, stderr=output, start_new_session=True)
print("Submitted batch job 77")
"""

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do
    case $1 in --output|--error) shift 2 ;; *) shift ;; esac
done
exec "$@"
"""

SACCT = """#!/usr/bin/env bash
echo "JobID|State|NodeList"
for task in 0 1 2 3; do echo "77_$task|RUNNING|localhost"; done
"""


def install(folder: Path) -> Dict[str, str]:
    """Put the three commands there; ``folder/script`` will be what was submitted.

    Returns:
        environment variables under which they are found.
    """
    commands = folder / "bin"
    commands.mkdir(parents=True)
    sbatch = SBATCH.format(python=sys.executable, place=str(folder))
    for name, text in (("sbatch", sbatch), ("srun", SRUN), ("sacct", SACCT)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    return {"PATH": os.pathsep.join([str(commands), os.environ["PATH"]])}
