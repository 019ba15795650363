import subprocess
import sys

MODULES = "askd_ray.cli", "askd_ray.evaluation.isolated", "askd_ray.models.stock", "faster_whisper"


def test_process_of_stock_faster_whisper_has_no_torch():
    """faster-whisper collects garbage for each clip: torch, which it does not need, would slow our peer down."""
    program = f"import sys, {', '.join(MODULES)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
