"""A recorded run, made up: two sequences that go down to a window and come back."""

from adaptive_kv.demo.timeline import Answer, Gap, Happening, Phase, Sample, Timeline

MIB = 2**20
MODES = ("full", "full", "int8", "window:512+int4", "int8", "full")


def make_sample(time_s: float, mode: str) -> Sample:
    return Sample(
        time_s=time_s,
        free_bytes=1024 * MIB,
        floor_bytes=900 * MIB,
        cache_bytes=int(10 * MIB * (1 + time_s)),
        held_bytes=300 * MIB,
        leave_bytes=130 * MIB,
        mode=mode,
        modes={"one": mode, "two": "parked" if mode.startswith("window") else mode},
        tokens_per_s=100.0,
    )


def make_timeline() -> Timeline:
    switched = {"type": "sequence_switched", "from": "full", "to": "int8", "sequences": 1}
    changed = {
        **switched,
        "type": "mode_changed",
        "freed_bytes": 30 * MIB,
        "duration_s": 0.02,
        "reason": 'memory is <short> & "tight"',
    }
    return Timeline(
        device="cpu",
        memory_source="meminfo",
        samples=[make_sample(float(i), mode) for i, mode in enumerate(MODES)],
        gaps=[Gap(1 + i / 40, 0.02 + i / 1000) for i in range(100)],
        happenings=[Happening(2.0, switched), Happening(2.0, switched), Happening(2.1, changed)],
        answers=[
            Answer(start_s=0.5, end_s=4.5, num_tokens=60, tokens_by_mode={"full": 20, "int8": 40}),
            Answer(start_s=0.5, end_s=5.5, num_tokens=40, tokens_by_mode={"window:512+int4": 40}),
        ],
        phases=[Phase(0.0, "calm"), Phase(1.5, "squeeze")],
        num_mqtt_states=5,
        num_mqtt_events=3,
        has_broker=True,
    )
