"""The walls: who imports whom, what stays instant, what is never typed, and which options every stage has."""

from __future__ import annotations

import ast
import dataclasses
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

# A room imports from the lines above its own only; those of the line of the models also each other, without a circle.
LAYERS = [
    {"options", "files", "tree", "grading", "rows", "problems", "stopping", "logbook", "demo", "rules", "yaml_files"},
    {"hub", "gym", "selector", "grid"},
    {"tasks"},
    {"prompts"},
    {"columns", "nested"},
    {"foreign"},
    {"shards", "packing", "metrics", "predictions", "probes"},
    {"pretrained", "feedback", "growth", "memory", "thought", "reasoner", "model", "plots"}
    | {"lessons", "losses", "optimizers", "tuning", "ranks", "sizing", "watching", "checkpoint", "feeding", "reading"}
    | {"comparison", "confidence", "doubt", "rivals", "truth", "step_truth"},
    {"scorers"},
    {"steering"},
    {"cluster", "preview", "resuming", "evaluation"},
    {"run", "tables", "findings"},
    {"collector", "trainer", "evaluator", "solver", "inspector", "tuner", "converter", "steerer"},
    {"stock"},
    {"experiment"},
    {"demo.card"},
    {"demo.recipe"},
    {"demo.reader", "demo.__main__"},
]
MAY_IMPORT_EACH_OTHER = LAYERS[7]
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


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unsafe_is_called(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"eval", "exec", "os.system", "pickle.load", "pickle.loads", "pickle.Unpickler"}, name
            for keyword in node.keywords:
                typed = f"{keyword.arg}={ast.unparse(keyword.value)}"
                assert typed not in {"weights_only=False", "shell=True", "trust_remote_code=True"}, typed
            if name == "torch.load":
                assert "weights_only" in {keyword.arg for keyword in node.keywords}, f"line {node.lineno}: {name}"


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
        dropout_prob=0.1 max_seq_length=512 use_prm_score=True loss='mse' supervise='paths'
        weigh_labels=False correctness_weight=0.0 context='question' context_dropout=0.1 reads='fed,answer'
        sees='chain' val_size=0.1
        val_steps=None early_stopping_patience=None save_steps=100 save_total_limit=None
        save_optimizer=True resume=None logging_steps=10 report_to='auto' log_level='INFO' device='auto'
        mixed_precision=True gradient_checkpointing=False compile='auto' parallel='ddp'
        deterministic=False seed=42 pack_tokens=4096 skip_bad_files=False plan=False""",
    "evaluate": """
        checkpoint data_dir calibrate_on=None rivals_on=None rivals=True output_dir=None
        num_bootstrap=2000 context=None seed=42 device='auto' pack_tokens=16384 skip_bad_files=False""",
    "solve": GROWTH
    + """
        question checkpoint='builtin' task='arithmetic' select='auto' abstain=0.0 steer=None confidence=None""",
    "steer": GROWTH
    + """
        task='arithmetic,search' split='test' max_samples=200 checkpoint='builtin'
        methods='topk,adaptive,diversity,budget,beam,particles,merge,uncertain,anytime' scorer='prm'
        after=None select='weighted_vote' confidence=0.95 pool_paths=None num_bootstrap=2000
        output_dir='reports' batch_size=None""",
    "experiment": """
        path output_dir='reports' num_bootstrap=2000 dry_run=False""",
    "inspect": """
        path='prm_data' show=0""",
    "convert": """
        path output_dir='prm_data' use_heuristic_scores=False""",
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
