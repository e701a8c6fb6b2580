#!/usr/bin/env python3
"""Train and evaluate any config of sam_d2 on any dataset.

python experiments/train_net.py --config-file configs/sam_tiny.py --dataset quickstart --prompt box
python experiments/train_net.py --config-file configs/sam_tiny.py --dataset quickstart --prompt box --eval-only
"""

from __future__ import annotations

import argparse
import copy
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_d2.cli import parse_args, run_main

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

    from sam_d2.evaluation.run import PromptedEvaluation

logger = logging.getLogger("sam_d2.train_net")

OUTPUT = Path(__file__).resolve().parent / "output"


def custom_cfg(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Adjust a config for all of your runs: this is the place to edit.

    What stands here wins over the config file; --dataset, --prompt, --output-dir and key=value win over it.
    For example::

        cfg.dataloader.train.total_batch_size = 8
        cfg.train.output_dir = f"/big_disk/runs/{Path(args.config_file).stem}"
        cfg.train.eval_period = 2000
    """


def build_cfg(args: argparse.Namespace) -> DictConfig:
    """Load the config and apply, in this order: custom_cfg, the named options, key=value."""
    from sam_d2.config import apply_overrides, load_config
    from sam_d2.config_dataset import set_max_iter, set_num_classes, set_tasks
    from sam_d2.config_numbers import check_numbers
    from sam_d2.config_prompts import check_edge_errors, check_prompt
    from sam_d2.data import resolve_dataset
    from sam_d2.errors import UserError
    from sam_d2.model_classes import record_classes

    cfg = load_config(args.config_file)
    loaded = copy.deepcopy(cfg)
    custom_cfg(cfg, args)
    if args.dataset:
        cfg.train.dataset = args.dataset
    if args.output_dir:
        cfg.train.output_dir = args.output_dir
    if args.prompt:
        if "prompts" not in cfg.model:
            raise UserError(f"--prompt {args.prompt}: the model of {args.config_file} takes no prompts.")
        cfg.model.prompt = args.prompt
    use_prompt_boxes(cfg, args)
    cfg = apply_overrides(cfg, args.opts)
    check_prompt(cfg, args.config_file)
    if not args.eval_only:
        check_edge_errors(cfg)
    check_numbers(cfg)
    if not cfg.train.dataset:
        raise UserError("No dataset. Add --dataset NAME, FOLDER or FILE; --dataset quickstart needs no data.")
    scores_boxes = getattr(args, "eval_only", False) and "prompts" not in cfg.model  # a detector needs no masks for it
    dataset = resolve_dataset(cfg.train.dataset, boxes_alone=scores_boxes)
    if scores_boxes:
        set_tasks(cfg, dataset.test)
    for part, registered in (("train", dataset.train), ("test", dataset.test)):
        node, before = cfg.dataloader[part].dataset, loaded.dataloader[part].dataset
        # A run's config.yaml holds the names of its own dataset; they give way when another one is asked for.
        if not node.names or (cfg.train.dataset != loaded.train.dataset and node.names == before.names):
            node.names = registered
    set_num_classes(cfg, loaded, dataset.classes)
    record_classes(cfg, dataset.train, dataset.classes)
    set_max_iter(cfg, args.opts)
    if not cfg.train.output_dir:
        prompt = [cfg.model.prompt] if "prompts" in cfg.model else []
        cfg.train.output_dir = str(OUTPUT / "_".join([Path(args.config_file).stem, dataset.name, *prompt]))
    return cfg


def use_prompt_boxes(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Let ``--prompt-boxes FILE`` stand for the detector; without ``--prompt`` it means ``--prompt detector``."""
    from omegaconf import OmegaConf

    from sam_d2.errors import UserError

    file = getattr(args, "prompt_boxes", None)  # tools that build a config have no such option
    if not file:
        return
    if "prompts" not in cfg.model:
        raise UserError(f"--prompt-boxes {file}: the model of {args.config_file} takes no prompts.")
    OmegaConf.update(cfg, "dataloader.detector.file", file, force_add=True)
    if not args.prompt:
        cfg.model.prompt = "detector"


def build_evaluation(cfg: DictConfig) -> PromptedEvaluation:
    """Build loader and evaluator; reads ``dataloader`` and of ``train``: ``output_dir, init_checkpoint, device``."""
    from detectron2.config import instantiate
    from sam_d2.engine.distributed import choose_device
    from sam_d2.evaluation.box_source import box_source
    from sam_d2.evaluation.run import PromptedEvaluation

    evaluator = instantiate(cfg.dataloader.evaluator)
    evaluator.output_dir = Path(cfg.train.output_dir)
    loader, pretrained = instantiate(cfg.dataloader.test), bool(cfg.train.init_checkpoint)
    boxes = box_source(cfg, choose_device(cfg.train.device)) if "prompts" in cfg.model else None
    return PromptedEvaluation(evaluator, loader, Path(cfg.train.output_dir), pretrained=pretrained, box_source=boxes)


def build_model(cfg: DictConfig) -> nn.Module:
    """Build the model on its device; reads ``model`` and of ``train``: ``device, compile``."""
    from detectron2.config import instantiate
    from sam_d2.engine.compile import compile_parts
    from sam_d2.engine.distributed import choose_device

    model = instantiate(cfg.model).to(choose_device(cfg.train.device))
    if cfg.train.get("compile", False):  # a config.yaml of before has no such key
        compile_parts(model)
    return model


def do_test(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Evaluate a checkpoint.

    Reads ``model``, ``dataloader`` and of ``train``: ``output_dir, init_checkpoint, device, cache_embeddings,
    embedding_cache, expected_results``.
    """
    from sam_d2.engine.checkpoint import Checkpointer
    from sam_d2.engine.embedding_cache import use_embedding_cache
    from sam_d2.engine.resume import weights_text
    from sam_d2.engine.run import checkpoint_to_evaluate
    from sam_d2.engine.selection import selected_on
    from sam_d2.evaluation.expected import check_expected, published_results

    model = build_model(cfg)
    checkpoint = checkpoint_to_evaluate(cfg, args)
    saved = Checkpointer(model).load(str(checkpoint))
    evaluation = build_evaluation(cfg)
    evaluation.evaluator.selected = selected_on(checkpoint, saved) == evaluation.evaluator.dataset_name
    cache = use_embedding_cache(cfg, model)
    results = evaluation(model)
    if cache is not None:
        cache.report()
    evaluation.finish(weights_text(checkpoint, saved), cfg)
    published = published_results(checkpoint, str(cfg.dataloader.test.dataset.names))
    check_expected(list(cfg.train.get("expected_results", [])) or published, results)


def do_train(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Train, evaluating and writing checkpoints on the way.

    Reads ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` and of ``train``: ``output_dir,
    init_checkpoint, max_iter, device, amp, accumulate, oom_retry, on_not_finite, clip_gradient_norm, cache_embeddings,
    embedding_cache, ema, checkpointer, eval_period, eval_base, validation_loss, early_stop, log_period,
    expected_results, ddp``.
    """
    from detectron2.config import instantiate
    from detectron2.engine import hooks
    from detectron2.solver import LRMultiplier
    from detectron2.utils import comm
    from sam_d2.config import save_config
    from sam_d2.config_dataset import log_dataset_settings
    from sam_d2.data.canvas_fit import log_canvas_fit
    from sam_d2.engine.best import BestCheckpoint
    from sam_d2.engine.checkpoint import FINAL, RECORD, PeriodicCheckpoint
    from sam_d2.engine.distributed import choose_amp_dtype, distribute, in_main_process, share_buffers
    from sam_d2.engine.early_stop import EarlyStop
    from sam_d2.engine.ema import AverageCheckpointer, WeightAverage
    from sam_d2.engine.embedding_cache import use_embedding_cache
    from sam_d2.engine.graceful_stop import EVALUATION_DUE, CatchUp, GracefulStop, SafeEvaluation, how_to_go_on
    from sam_d2.engine.optim import build_optimizer
    from sam_d2.engine.progress import ProgressLine
    from sam_d2.engine.resume import apply_options, optimizer_options, run_record, weights_text
    from sam_d2.engine.run import has_checkpoint, initial_weights
    from sam_d2.engine.stop_metric import main_metric, require_metric
    from sam_d2.engine.trainer import Trainer
    from sam_d2.engine.writers import curve_writers
    from sam_d2.evaluation.expected import check_expected

    output = Path(cfg.train.output_dir)
    begun_with = copy.deepcopy(cfg)  # the optimizer's config is about to hold the model
    model = build_model(cfg)
    loader = instantiate(cfg.dataloader.train)
    record = run_record(cfg, loader.records)
    log_dataset_settings(cfg, loader.size)
    if hasattr(model, "canvas"):
        log_canvas_fit(loader.dataset, model.canvas)
    cache = use_embedding_cache(cfg, model, loader.mapper, loader.size)
    optimizer = build_optimizer(cfg.optimizer, model)
    evaluation = build_evaluation(cfg)
    validation = instantiate(cfg.dataloader.validation) if cfg.train.validation_loss else None
    if cfg.train.early_stop.metric is None:
        cfg.train.early_stop.metric = main_metric(model)[0]
    if cfg.train.early_stop.patience is not None:
        require_metric(
            cfg.train.early_stop.metric, evaluation.evaluator, model, validation_loss=cfg.train.validation_loss
        )
    trainer = Trainer(
        distribute(model, **cfg.train.ddp),
        loader,
        optimizer,
        amp_dtype=choose_amp_dtype(cfg.train.amp.enabled, cfg.train.amp.dtype, next(model.parameters()).device),
        clip_gradient_norm=cfg.train.clip_gradient_norm,
        accumulate=cfg.train.accumulate,
        seed=cfg.train.seed,
        oom_retry=cfg.train.get("oom_retry", True),  # a config.yaml of before has none
        on_not_finite=cfg.train.get("on_not_finite", "error"),
    )
    average = WeightAverage(model, cfg.train.ema.decay)
    checkpointer = AverageCheckpointer(
        average, model, str(output), save_to_disk=comm.is_main_process(), trainer=trainer
    )
    checkpointer.record = record
    multiplier = LRMultiplier(optimizer, instantiate(cfg.lr_multiplier), cfg.train.max_iter)
    periods = cfg.train.checkpointer
    main_process_hooks = [
        PeriodicCheckpoint(checkpointer, period=periods.period, max_to_keep=periods.max_to_keep),
        BestCheckpoint(cfg.train.eval_period, checkpointer, *main_metric(model)),
        ProgressLine(cfg.train.log_period),
    ]

    results: dict[str, Any] = {}

    def evaluate() -> dict[str, Any]:
        share_buffers(model)
        with average.applied():
            results.update({**evaluation(model), **(validation(model) if validation else {})})
        return dict(results)

    checkpoint, best, progress = main_process_hooks if comm.is_main_process() else [None] * 3
    evaluated = [
        SafeEvaluation(cfg.train.eval_period, evaluate, checkpointer),
        best,
        EarlyStop(cfg.train.eval_period, checkpointer, **cfg.train.early_stop, max_iter=cfg.train.max_iter),
        checkpoint,
    ]
    catch_up = CatchUp(evaluated)
    timing = [hooks.IterationTimer(), hooks.LRScheduler(scheduler=multiplier)]
    trainer.register_hooks([*timing, average, *evaluated, progress, GracefulStop(checkpointer), catch_up])
    options = optimizer_options(optimizer)
    saved = checkpointer.resume_or_load(str(initial_weights(cfg, args) or ""), resume=args.resume)
    if comm.is_main_process():  # after the weights are found to fit: a start that fails leaves a run as it was
        save_config(begun_with, output / "config.yaml")
        trainer.register_hooks([hooks.PeriodicWriter(curve_writers(cfg, output), period=cfg.train.log_period)])
    start = trainer.iter + 1 if has_checkpoint(cfg, args) else 0
    catch_up.due = start > 0 and saved.get(EVALUATION_DUE) is True
    loader.start_iteration = start * cfg.train.accumulate
    if 0 < start < cfg.train.max_iter:
        apply_options(optimizer, multiplier, options)
    if start == 0 and cfg.train.eval_base:
        logger.info("Evaluating the model before training")
        evaluation(model, method="base")
        model.train()
    if start >= cfg.train.max_iter:
        logger.info("Already trained to step %d: only scored. To train on, raise train.max_iter", start)
        final = output / f"{FINAL}.pth"  # of a run that was stopped, and is to end here, there is none
        in_main_process(lambda: final.is_file() or checkpointer.save(FINAL, iteration=start - 1), output)
    if cache is not None and hasattr(loader.mapper, "is_cached"):
        with trainer.autocast():
            loader.mapper.is_cached = cache.lookup(model)
    try:
        trainer.train(start, cfg.train.max_iter)
    except KeyboardInterrupt:
        logger.warning("Interrupted: %s", how_to_go_on(output))
        raise
    if cache is not None:
        cache.report()
    if trainer.stopped:
        evaluation.mark_selected()
    evaluation.finish(weights_text(f"{FINAL}.pth", {"iteration": trainer.iter - 1, RECORD: record}))
    check_expected(cfg.train.get("expected_results", []), results)


def main(args: argparse.Namespace) -> int:
    """Run in each process: configs and datasets are set up here, because spawned processes share nothing."""
    from sam_d2.engine.run import begin_run
    from sam_d2.faults import told

    cfg = build_cfg(args)
    with begin_run(cfg, args), told(Path(cfg.train.output_dir)):
        if args.eval_only:
            do_test(cfg, args)
        else:
            do_train(cfg, args)
    return 0


def launch() -> int | None:
    args = parse_args()
    from sam_d2.engine.launch import launch_main

    return launch_main(main, args)


if __name__ == "__main__":
    run_main(launch)
