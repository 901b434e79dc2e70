import subprocess
import sys

from mup_lightning.config.schema import EOT_IDS, VOCAB_SIZES


def test_vocabulary_facts():
    assert (VOCAB_SIZES["gpt2"], EOT_IDS["gpt2"]) == (50257, 50256)
    assert (VOCAB_SIZES["bytes"], EOT_IDS["bytes"]) == (256, 0)


def test_config_order_and_help_import_nothing_heavy():
    code = (
        "import sys\n"
        "import mup_lightning.config.schema, mup_lightning.data.sampler\n"
        "from mup_lightning.cli.main import main\n"
        "try: main(['data', 'prepare', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'datasets', 'tiktoken', 'lightning', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout
