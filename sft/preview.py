"""`python -m sft.preview model=qwen3 dataset=…`: the rows as the model will see them, and which tokens are trained."""

from __future__ import annotations

from omegaconf import DictConfig

from sft.config.app import command, logs_to_stderr


@command("preview")
def main(config: DictConfig) -> None:
    """Show rows as coloured tokens, and write preview.html, preview.jsonl and data_report.json into the run directory."""
    from rich.console import Console

    from sft.data.preview import preview_rows, show, to_html, to_jsonl
    from sft.data.report.account import account
    from sft.data.report.length import plot_lengths
    from sft.data.report.table import show_report
    from sft.run.session import run_lock_and_log
    from sft.training.inputs import prepare_inputs
    from sft.training.job import Job

    job = Job.of(config)
    run = job.run
    with logs_to_stderr(), run_lock_and_log(run):
        inputs = prepare_inputs(job.config)
        rows = preview_rows(inputs.data.train, inputs.tokenizer, job.config["preview"]["rows"])
        run.write_json(run.data_report, inputs.data.report)
        run.write_text(run.preview_html, to_html(rows, run.path.name, account(inputs.data.report)))
        run.write_text("preview.jsonl", to_jsonl(rows))
        run.write_with("lengths.png", lambda path: plot_lengths(inputs.data.report, path))
    show(rows, Console())
    show_report(inputs.data.report, Console(stderr=True))
    print(run.path)


if __name__ == "__main__":
    main()
