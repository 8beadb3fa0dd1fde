"""The walls: who imports whom, what stays instant, what is never typed, and which options every stage has."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

from latent_prm import options
from latent_prm.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*ROOT.glob("latent_prm/**/*.py"), *ROOT.glob("methods/**/*.py")])
BENCHMARKS = sorted(ROOT.glob("benchmarks/**/*.py"))
SCRIPTS = sorted([*ROOT.glob("*.sh"), *ROOT.glob("latent_prm/**/*.sh")])

# A room imports from the lines above its own only; those of the line of the models also each other, without a circle.
LAYERS = [
    {"drawing"},
    {
        "options",
        "files",
        "tree",
        "grading",
        "rows",
        "problems",
        "stopping",
        "logbook",
        "screen",
        "reaching",
        "demo",
        "rules",
        "yaml_files",
    }
    | {"meters", "patience"}
    | {"sheet", "reviving"},
    {"hub", "gym", "selector", "grid"} | {"wire", "client", "gate"},
    {"tasks"},
    {"prompts"},
    {"columns", "nested", "seals"},
    {"foreign", "weights"},
    {"shards", "packing", "metrics", "predictions", "probes", "odds"},
    {"pretrained", "preflight", "feedback", "growth", "memory", "thought", "reasoner", "model", "plots"}
    | {"lessons", "losses", "optimizers", "tuning", "ranks", "sizing", "watching", "checkpoint", "feeding", "reading"}
    | {"comparison", "confidence", "kinship", "settling", "doubt", "rivals", "truth", "step_truth"},
    {"scorers"},
    {"steering"},
    {"cluster", "preview", "resuming", "evaluation", "inventory"}
    | {"batching", "telling", "describing"}
    | {"charts", "explorer"},
    {"model_card"} | {"run", "tables", "contest", "findings", "mending", "chronicle"},
    {"collector", "trainer", "evaluator", "solver", "inspector", "tuner", "converter", "steerer", "verifier"}
    | {"exporter", "doctor"},
    {"stock", "api", "exhibits"},
    {"experiment", "server", "reporter"},
    {"demo.card"},
    {"demo.recipe"},
    {"demo.reader", "demo.__main__"},
]
MAY_IMPORT_EACH_OTHER = LAYERS[8]
TORCH_FREE = ("options", "tasks", "selector")
DOORS = {"", "__main__"}  # the package itself and its command line reach every room, and only by name


def test_imports_go_one_way() -> None:
    layer_of = {room: i for i, layer in enumerate(LAYERS) for room in layer}
    graph = import_graph()
    assert graph.keys() <= layer_of.keys(), "give the new room its layer in LAYERS"
    for room, imported in graph.items():
        for other in imported:
            beside = {room, other} <= MAY_IMPORT_EACH_OTHER
            assert layer_of[other] < layer_of[room] or beside, f"{room} imports {other}, which does not stand below it"
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("room", ["options", "tasks", "prompts", "metrics", "selector", "__init__", "__main__"])
def test_rooms_that_promise_to_be_free_of_torch_never_import_it(room: str) -> None:
    imported = imports_of(ROOT / "latent_prm" / f"{room}.py", for_types=False)
    assert not {name for name in imported if name.split(".")[0] in {"torch", "transformers", "safetensors"}}


@pytest.mark.parametrize("room", ["latent_prm", "methods.latent_prm", *map("latent_prm.{}".format, TORCH_FREE)])
def test_importing_it_does_not_import_torch(room: str) -> None:
    assert "torch" not in modules_after(f"import {room}")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_does_not_import_torch(command: str) -> None:
    typed = [*command.split(), "--help"]
    run = "from latent_prm.__main__ import main\ntry: main({})\nexcept SystemExit as end: assert end.code == 0"
    assert "torch" not in modules_after(run.format(typed))


def test_the_public_names_come_from_the_package_and_from_the_guides_doorplate() -> None:
    import latent_prm
    import methods.latent_prm

    for name in latent_prm.__all__:
        assert getattr(methods.latent_prm, name) is getattr(latent_prm, name)
        assert name in dir(latent_prm)
    with pytest.raises(AttributeError, match="QwenLatentPRM"):
        latent_prm.QwenPRM  # noqa: B018


# What runs code that a file brings along, however it is called in.
RUNS_CODE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}
RUNS_CODE |= {
    f"{room}.{name}" for room in ("pickle", "marshal", "dill", "joblib", "cloudpickle") for name in ("load", "loads")
}
RUNS_CODE |= {
    "pickle.Unpickler",
    "shelve.open",
    "torch.jit.load",
    "torch.hub.load",
    "pandas.read_pickle",
    "pd.read_pickle",
}
UNSAFELY = {"weights_only=False", "shell=True", "trust_remote_code=True", "allow_pickle=True"}
SAFE_LOADERS = {"yaml.SafeLoader", "_OnceLoader"}  # the second is made of the first

# How bytes reach the disk, and tensors come from it: through `files`, or for the reason that stands here.
FILES = {
    "torch.save",
    "torch.load",
    "save_file",
    "load_file",
    "safe_open",
    "save_pretrained",
    "write_text",
    "write_bytes",
}
FILES |= {
    "np.save",
    "np.savez",
    "np.load",
    "io.FileIO",
    "os.rename",
    "os.replace",
    "os.write",
    "shutil.copy",
    "savefig",
}
FILES |= {"shutil.copyfile", "shutil.move", "open to write"}
OUTSIDE_FILES = {
    ("model", "save_pretrained"): "a tokenizer writes by itself: into a folder aside, from which `files` copies",
    (
        "experiment",
        "save_pretrained",
    ): "a start made of chance, into the folder that files.commit_folder is about to commit",
    ("demo.recipe", "save_pretrained"): "makes the built-in reasoner, by hand, once",
    ("demo.reader", "save_pretrained"): "makes the built-in reader, by hand, once",
    ("demo.card", "write_text"): "the built-in reasoner's card",
}


@pytest.mark.parametrize("source", [*SOURCES, *BENCHMARKS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unsafe_is_called(source: Path) -> None:
    for call in calls_in(source):
        name, keywords = ast.unparse(call.func), {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"line {call.lineno}: {name}"
        assert name not in RUNS_CODE, where
        for keyword, value in keywords.items():
            assert f"{keyword}={value}" not in UNSAFELY, f"{where}({keyword}={value})"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", where
        if name == "yaml.load":
            assert {*keywords.values(), *map(ast.unparse, call.args[1:])} & SAFE_LOADERS, where
        if name.startswith("Auto") and name.endswith((".from_pretrained", ".from_config")) and source in SOURCES:
            assert keywords.get("trust_remote_code") == "False" or None in keywords, where  # None: **settings


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_written_and_loaded_goes_through_files(source: Path) -> None:
    room = room_name(source) if source.is_relative_to(ROOT / "latent_prm") else source.stem
    found = {(room, way): call.lineno for call in calls_in(source) if (way := way_to_the_disk(call))}
    if room != "files":
        assert not found.keys() - OUTSIDE_FILES.keys(), f"through files, or say why not in OUTSIDE_FILES: {found}"
        assert {one for one in OUTSIDE_FILES if one[0] == room} <= found.keys(), "OUTSIDE_FILES allows what is not done"


def test_the_test_of_what_is_written_sees_every_way() -> None:
    seen = [
        "torch.save(x, p)",
        "p.write_text('')",
        "open(p, 'w')",
        "p.open('ab')",
        "open(p, mode='r+')",
        "os.replace(a, b)",
    ]
    seen += ["model.save_pretrained(p)", "safetensors.torch.save_file(x, p)", "figure.savefig(p)", "io.FileIO(p, 'x')"]
    for line in seen:
        assert way_to_the_disk(ast.parse(line).body[0].value), line  # type: ignore[reportAttributeAccessIssue]
    for line in (
        "open(p)",
        "p.open('rb')",
        "p.open(encoding='utf-8')",
        "text.replace(a, b)",
        "safetensors.torch.save(x)",
    ):
        assert not way_to_the_disk(ast.parse(line).body[0].value), line  # type: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_script_runs_what_it_is_given(script: Path) -> None:
    text = "\n".join(line.partition("#")[0] for line in script.read_text("utf-8").splitlines())
    if "given=$(export -p)" in text:  # what bash itself has quoted
        text = text.replace('eval "$given"', "")
    unsafe = r"\beval [\"'$]|\b(ba)?sh -c\b|(curl|wget).*\||\brm -rf? [\"']?\$|weights_only|trust_remote_code"
    assert not (found := re.search(unsafe, text)), found


# The options of every stage, as they are typed. A change here is a change for everyone who has typed one.
GROWTH = """
    model_path='builtin' revision=None align=None device='auto' dtype='auto' pipeline='solo' think=False num_paths=None
    branches=None latent_steps=None diversity_strategy='noise' noise=None soft_temperature=None dropout=None
    temperature=0.0 top_p=1.0 max_new_tokens=None seed=42"""
OPTIONS = {
    "collect": GROWTH
    + """
        task='arithmetic,search' split='train' output_dir='prm_data' max_samples=1000 answers_per_leaf=1
        until_mixed=False noise_free=True keep_hidden=False batch_size=None shard_size=500 compile='auto'
        engine='local' num_workers=None shard=None dry_run=False skip_bad_files=False""",
    "tune-noise": GROWTH
    + """
        task='arithmetic,search' split='validation' max_samples=200
        noises='0.05,0.1,0.15,0.2,0.3,0.4,0.5,0.6,0.8,1.0' max_loss=0.05 output_dir='reports'
        batch_size=None""",
    "train": """
        model_path='builtin' data_dir='prm_data' output_dir=None num_epochs=5 tuning='full' lora_rank=16
        train_embeddings=False batch_size=4 learning_rate=2e-05 weight_decay=0.01 optimizer='adamw'
        warmup_ratio=0.1 gradient_accumulation_steps=4 max_grad_norm=1.0 pooling_strategy='mean'
        dropout_prob=0.1 max_seq_length=512 use_prm_score=True loss='bce+0.5*listwise' supervise='paths'
        weigh_labels=False correctness_weight=0.0 context='question' context_dropout=0.1 reads='fed,answer'
        sees='chain' val_size=0.1
        val_steps=None early_stopping_patience=None save_steps=100 save_total_limit=None
        save_optimizer=True resume=None logging_steps=10 report_to='auto' log_level='INFO' device='auto'
        mixed_precision=True gradient_checkpointing=False compile='auto' parallel='ddp'
        deterministic=False seed=42 pack_tokens=None skip_bad_files=False plan=False""",
    "evaluate": """
        checkpoint data_dir calibrate_on=None rivals_on=None rivals=True output_dir=None
        num_bootstrap=2000 context=None seed=42 device='auto' pack_tokens=16384 skip_bad_files=False""",
    "solve": GROWTH
    + """
        question checkpoint='builtin' task='arithmetic' select='auto' abstain=0.0 steer=None confidence=None""",
    "serve": GROWTH
    + """
        checkpoint='builtin' task='arithmetic' select='auto' solve=True host='127.0.0.1' port=8000 max_body_mb=16
        queue_size=64 batch_tokens=4096 timeout=60.0""",
    "steer": GROWTH
    + """
        task='arithmetic,search' split='test' max_samples=200 checkpoint='builtin'
        methods='topk,adaptive,diversity,budget,beam,particles,merge,uncertain,anytime' scorer='prm'
        after=None select='weighted_vote' confidence=None pool_paths=None num_bootstrap=2000
        output_dir='reports' batch_size=None""",
    "experiment": """
        path output_dir='reports' num_bootstrap=2000 dry_run=False""",
    "inspect": """
        path='prm_data' show=0""",
    "report": """
        path output=None checkpoint=None data_dir=None questions=200 seed=42 device='auto' skip_bad_files=False""",
    "verify": """
        path repair=False""",
    "convert": """
        path output_dir='prm_data' use_heuristic_scores=False""",
    "export": """
        checkpoint output_dir push_to_hub=None public=False""",
    "doctor": """
        timeout=5.0""",
}

# The guide's tables. `cuda` became `auto`: CUDA when there is one, else the CPU.
GUIDE = """
    num_epochs=5 batch_size=4 learning_rate=2e-05 weight_decay=0.01 warmup_ratio=0.1 gradient_accumulation_steps=4
    max_grad_norm=1.0 pooling_strategy='mean' dropout_prob=0.1 max_seq_length=512 use_prm_score=True save_steps=100
    logging_steps=10 log_level='INFO' device='auto' mixed_precision=True seed=42"""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_a_stage_are_these(command: str) -> None:
    assert typed_options(command) == OPTIONS[command].split()


def test_the_trainer_has_every_option_of_the_guide_with_its_default() -> None:
    assert set(GUIDE.split()) <= set(typed_options("train"))
    assert {"model_path='builtin'", "data_dir='prm_data'", "output_dir=None"} <= set(typed_options("train"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is(command: str) -> None:
    source = ast.parse((ROOT / "latent_prm" / "options.py").read_text("utf-8"))
    body = next(c.body for c in source.body if isinstance(c, ast.ClassDef) and c.name == COMMANDS[command].options)
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), ast.unparse(field)


def typed_options(command: str) -> list[str]:
    fields = dataclasses.fields(getattr(options, COMMANDS[command].options))
    return [f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}" for f in fields]


def calls_in(source: Path) -> Iterator[ast.Call]:
    """Every call in a file of Python."""
    return (node for node in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(node, ast.Call))


def way_to_the_disk(call: ast.Call) -> str | None:
    """The one of `FILES` that a call is; None when it is none."""
    name = ast.unparse(call.func)
    if name == "open" or name.endswith(".open"):
        modes = [*call.args, *(each.value for each in call.keywords if each.arg == "mode")]
        texts = [each.value for each in modes if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        return "open to write" if any(re.fullmatch("[rwaxbt+]*[wax+][rwaxbt+]*", text) for text in texts) else None
    if name in ("safetensors.torch.save", "safetensors.torch.load"):  # of bytes in memory
        return None
    return next((way for way in FILES if name == way or name.endswith(f".{way}")), None)


def import_graph() -> dict[str, set[str]]:
    """Which rooms each room of latent_prm imports."""
    rooms = {room_name(path): imports_of(path) for path in ROOT.glob("latent_prm/**/*.py")}
    return {
        room: {known for known in rooms if f"latent_prm.{known}" in imported} - {room} - DOORS
        for room, imported in rooms.items()
        if room not in DOORS
    }


def room_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "latent_prm").with_suffix("").parts).removesuffix("__init__").strip(".")


def imports_of(path: Path, for_types: bool = True) -> set[str]:
    """The full names of the modules, and of what is taken from them, that a file imports at its top or later.

    ``for_types``: also those that only type checkers see.
    """

    def names(node: ast.AST) -> Iterator[str]:
        if not for_types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: import from latent_prm.ROOM, not from .ROOM"
            yield from (node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names))
        for child in ast.iter_child_nodes(node):
            yield from names(child)

    return set(names(ast.parse(path.read_text("utf-8"))))


def modules_after(code: str) -> set[str]:
    """The modules that a fresh Python has loaded after running ``code``."""
    code += "\nimport sys; print('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())
