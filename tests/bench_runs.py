"""Results of flux-bench made up of given times."""

from __future__ import annotations

from collections.abc import Sequence

from flux_trt.bench.schema import (
    About,
    BundleId,
    Case,
    Ceilings,
    Count,
    Curve,
    Hardware,
    Painter,
    Point,
    Quality,
    Roofline,
    Run,
    Scaling,
    Series,
    StageRoof,
)


def painter(
    name: str,
    ms: Sequence[float],
    psnr: float | None = None,
    score: float | None = None,
    pictures: int = 12,
) -> Painter:
    """A painter whose pictures took these times; a step took a tenth."""
    steps = Series.of([value / 10 for value in ms])
    return Painter(
        name=name,
        device="cpu",
        picture_ms=Series.of(list(ms)),
        pictures_per_second=10.0,
        faster=None,
        quality=Quality(
            pictures=pictures,
            reference="diffusers" if psnr else None,
            psnr_db_median=psnr,
            psnr_db_min=psnr,
            score=score,
        ),
        stages_ms={"denoiser": steps},
        step_ms=steps,
        between_steps_ms=None,
        outside_ms=Series.of([value / 5 for value in ms]),
        start=None,
        joules_per_picture=None,
    )


def case(*painters: Painter, steps: int = 4) -> Case:
    """64x64."""
    return Case(
        width=64, height=64, steps=steps, guidance=3.5, batch=1, text_tokens=32, painters=list(painters)
    )


def about() -> About:
    """Of a machine that is none."""
    hardware = Hardware(cpu="a CPU", cores=2, memory_gb=8.0, gpu=None, driver=None, power_limit_w=None)
    return About(
        date="2026-01-02T03:04:05+00:00",
        command="flux-bench run nano",
        hardware=hardware,
        python="3.11",
        versions={"numpy": "2"},
        load_average=0.1,
        bundle=BundleId(name="nano", digest="0" * 64, variant="dev", precision={"denoiser": "fp32"}),
    )


def result(*painters: Painter) -> Run:
    """One case."""
    return Run(about=about(), warmup=1, runs=12, spread_limit=0.1, noisy=False, cases=[case(*painters)])


def roofline() -> Roofline:
    """Of one stage."""
    counted = Count(
        matrix_flops=10**9, other_flops=10**6, weight_bytes=10**7, io_bytes=10**5, unfused_bytes=10**8
    )
    stage = StageRoof(
        name="denoiser", count=counted, dtype="fp32", time_ms=20.0, compute_ms=10.0, memory_ms=1.0,
        bound="compute", fraction=0.5,
    )  # fmt: skip
    ceilings = Ceilings(matrix_gflops={"fp32": 100.0}, measured_with={"fp32": "numpy"}, copy_gbs=10.0)
    return Roofline(
        about=about(), backend="onnxruntime", device="cpu", width=64, height=64, steps=4, batch=1,
        ceilings=ceilings, noisy=False, stages=[stage],
    )  # fmt: skip


def scaling() -> Scaling:
    """Over tokens."""
    points = [Point(x=x, ms=x / 10, spread=0.01, runs=5) for x in (256, 512, 1024)]
    curve = Curve(
        over="tokens", fixed={"batch": 1}, points=points, exponent=1.1, r2=1.0, stopped="out of time"
    )
    return Scaling(about=about(), backend="onnxruntime", device="cpu", curves=[curve])
