"""What generation costs: sampling latents, decoding, drawing counts, for both denoisers.

Run: python benchmarks/generation_cost.py [--threads 1] [--cells 10000]
     python benchmarks/generation_cost.py --counts     drawing counts alone, beside a gamma and a Poisson variable a gene
No data needed; the networks are untrained, which changes nothing about their cost.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy import sparse
from scvi.distributions import NegativeBinomial

from diffvi._random import CellStreams
from diffvi.data import TrainingTable, sample_counts
from diffvi.datasets import simulate_cells
from diffvi.model import LatentDiffusionSCVI
from diffvi.process import get_sampler


def gene_by_gene(px: NegativeBinomial, streams: CellStreams) -> sparse.csr_matrix:
    """Counts as a Poisson variable of a gamma rate for every gene: the plain way."""
    mean, shape = px.mu.double().numpy(), px.theta.double().numpy()
    drawn = [s.poisson(s.standard_gamma(shape[i]) * (mean[i] / shape[i])) for i, s in enumerate(streams)]
    return sparse.csr_matrix(np.stack(drawn).astype(np.int32))


def counts_alone(n: int = 1024) -> None:
    print("| genes | molecules a cell | not zero | gene by gene, us a cell | sample_counts, us a cell | ratio |")
    print("|---|---|---|---|---|---|")
    torch.manual_seed(0)
    for n_genes, library in ((2000, 300), (2000, 800), (2000, 5000), (2000, 20_000), (20_000, 5000)):
        share = torch.distributions.Gamma(0.3, 1.0).sample((n, n_genes))
        px = NegativeBinomial(mu=library * share / share.sum(1, keepdim=True), theta=0.1 + 5 * torch.rand(n_genes))
        seconds = {}
        for name, draw in (("plain", gene_by_gene), ("ours", sample_counts)):
            times = []
            for _ in range(3):
                streams, start = CellStreams(0, np.arange(n)), time.perf_counter()
                drawn = draw(px, streams)
                times.append(time.perf_counter() - start)
            seconds[name] = 1e6 * min(times) / n
        figures = f"{seconds['plain']:.0f} | {seconds['ours']:.0f} | {seconds['ours'] / seconds['plain']:.2f}"
        print(f"| {n_genes} | {library} | {drawn.nnz / n / n_genes:.2f} | {figures} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--counts", action="store_true", help="time the drawing of counts alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.counts:
        return counts_alone()
    adata = simulate_cells(300, arguments.genes, n_types=3, mean_library=1000)
    LatentDiffusionSCVI.setup_anndata(adata, labels_key="cell_type")
    print(f"{arguments.cells} cells x {arguments.genes} genes, {arguments.threads} thread(s)")
    print(
        "| denoiser | streams | latents (Heun, 5 steps) | decode | counts | latents / (decode + counts) | generate() / (decode + counts) |"
    )
    print("|---|---|---|---|---|---|---|")
    for denoiser in ("dit", "mlp"):
        model = LatentDiffusionSCVI(adata, denoiser=denoiser)
        model.train(max_epochs=1, max_epochs_diffusion=1, enable_progress_bar=False)
        seconds = dict.fromkeys(("streams", "latents", "decode", "counts"), 0.0)
        table = TrainingTable(**model.training_table_)
        prior = model.module.prior

        def timed(name, f, seconds=seconds):
            start = time.perf_counter()
            result = f()
            seconds[name] += time.perf_counter() - start
            return result

        with torch.inference_mode():
            for start in range(0, arguments.cells, arguments.batch_size):
                rows = np.arange(start, min(start + arguments.batch_size, arguments.cells))
                codes = torch.zeros(len(rows), 1)
                streams = timed("streams", lambda rows=rows: CellStreams(0, rows))
                noise = timed("streams", lambda streams=streams: streams.normal(prior.d))
                sampler = get_sampler("heun")
                state = timed("latents", lambda n=noise, c=codes: prior.sample(n, c, sampler, 5))
                some = table.subset(np.zeros(len(rows), int))
                px = timed("decode", lambda s=state, t=some: model._decode(s, t))
                timed("counts", lambda p=px, s=streams: sample_counts(p, s))
        start = time.perf_counter()
        model.generate(arguments.cells, {"cell_type": "type_0"}, seed=0, batch_size=arguments.batch_size)
        whole = time.perf_counter() - start
        decoding = seconds["decode"] + seconds["counts"]
        figures = " | ".join(f"{seconds[k]:.2f} s" for k in seconds)
        print(f"| {denoiser} | {figures} | {seconds['latents'] / decoding:.2f} | {whole / decoding:.2f} |")
        for n_steps in (1, 2):
            # One update: what was learned changes nothing about the cost.
            model.distill(n_steps, n_updates=1, show_progress=False)
            start = time.perf_counter()
            model.generate(
                arguments.cells, {"cell_type": "type_0"}, seed=0, sampler="distilled", batch_size=arguments.batch_size
            )
            whole = time.perf_counter() - start
            print(f"| {denoiser}, distilled to {n_steps} | | | | | | {whole / decoding:.2f} |")


if __name__ == "__main__":
    main()
