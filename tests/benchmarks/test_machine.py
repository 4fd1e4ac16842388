"""What a machine tells: read from a made-up `/sys` and `/proc`, and from this one's page cache."""

import os
import time

import pytest

from rexthinker_edge.benchmarks.energy import EnergyMeter, Heat, rails, read_heat, throttling
from rexthinker_edge.benchmarks.machine import (
    Taken,
    Turns,
    begin_peak,
    cached_share,
    drop_from_cache,
    machine_card,
    others_share,
    peak_bytes,
    read_taken,
    read_turns,
    waited_share,
)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))


RAPL = {
    "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    "sys/class/powercap/intel-rapl:0/energy_uj": 1_000_000,
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 2_000_000,
    "sys/class/powercap/intel-rapl:0:0/name": "core\n",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": 5,
}
INA = {
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon3/in1_input": 5_000,  # mV
    "sys/class/hwmon/hwmon3/curr1_input": 2_000,  # mA
    "sys/class/hwmon/hwmon3/in7_label": "Sum of shunt voltages\n",
    "sys/class/hwmon/hwmon3/in7_input": 9,
    "sys/class/hwmon/hwmon3/curr7_input": 9,
}


def test_a_counter_of_energy_is_read_before_and_after(tmp_path):
    write(tmp_path, RAPL)
    with EnergyMeter(tmp_path) as meter:
        write(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 1_600_000})
    assert meter.joules == {"package-0": 0.6}
    told = meter.report(expressions=3)
    assert told["available"]
    assert told["joules_per_expression"] == {"package-0": pytest.approx(0.2)}
    assert told["watts"]["package-0"] == pytest.approx(0.6 / meter.seconds)


def test_a_counter_that_began_again_is_understood(tmp_path):
    write(tmp_path, RAPL)
    with EnergyMeter(tmp_path) as meter:
        write(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 200_000})
    assert meter.joules == {"package-0": pytest.approx(1.2)}


def test_a_jetsons_sensor_is_read_over_and_over(tmp_path):
    write(tmp_path, INA)
    assert [rail.name for rail in rails(tmp_path)] == ["VDD_IN"]  # the sum is of voltages, not of power
    with EnergyMeter(tmp_path) as meter:
        time.sleep(0.02)
    assert 0 < meter.joules["VDD_IN"] <= 10.0 * meter.seconds  # 10 W until the last reading
    assert rails(tmp_path)[0].microwatts() == 10e6


def test_any_other_power_sensor_serves(tmp_path):
    write(
        tmp_path, {"sys/class/hwmon/hwmon0/name": "board", "sys/class/hwmon/hwmon0/power1_input": 7_000_000}
    )
    (found,) = rails(tmp_path)
    assert (found.name, found.microwatts()) == ("board", 7_000_000)


def test_no_energy_is_told_with_the_reason(tmp_path):
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.report(1) == {"available": False, "why": "no RAPL, no power sensor"}
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0"})  # its energy is not to be read
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.report(1)["why"] == "RAPL is there but this user may not read it"


def test_throttling_is_what_the_counters_gained(tmp_path):
    cpu = "sys/devices/system/cpu/cpu0"
    write(
        tmp_path,
        {
            f"{cpu}/thermal_throttle/core_throttle_count": 4, f"{cpu}/cpufreq/scaling_cur_freq": 1_500_000,
            f"{cpu}/cpufreq/cpuinfo_max_freq": 3_000_000, "sys/class/thermal/thermal_zone0/temp": 71_500,
            "sys/class/hwmon/hwmon2/oc1_event_cnt": 0,
        },
    )  # fmt: skip
    before = read_heat(tmp_path)
    assert (before.clock_share, before.hottest_c) == (0.5, 71.5)
    assert throttling(before, before) == {
        "throttled": False, "events": {}, "clock_share": 0.5, "hottest_c": 71.5
    }  # fmt: skip
    write(tmp_path, {"sys/class/hwmon/hwmon2/oc1_event_cnt": 2})
    after = throttling(before, read_heat(tmp_path))
    assert after["throttled"]
    assert after["events"] == {"class/hwmon/hwmon2/oc1_event_cnt": 2}


def test_a_machine_without_counters_says_so():
    nothing = Heat({}, None, None)
    assert throttling(nothing, nothing)["throttled"] is None
    assert throttling(nothing, nothing)["why"] == "no throttle counters here"


def test_the_card_names_processor_board_memory_and_versions(tmp_path):
    write(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nmodel name : Fast One\n", "proc/meminfo": "MemTotal: 8 kB\n",
            "proc/device-tree/model": "Jetson\0",
        },
    )  # fmt: skip
    card = machine_card(tmp_path)
    assert (card["processor"], card["memory_bytes"], card["board"]) == ("Fast One", 8192, "Jetson")
    assert card["versions"]["numpy"]
    assert machine_card()["cores"] == os.cpu_count()


def test_memory_held_since_a_moment(tmp_path):
    held = bytearray(64 << 20)
    held[::4096] = b"1" * len(held[::4096])
    with_it = peak_bytes()
    assert with_it > 64 << 20
    del held
    if begin_peak():
        assert peak_bytes() < with_it - (32 << 20)
    write(tmp_path, {"proc/self/status": "VmHWM:\t    3 kB\n"})
    assert peak_bytes(tmp_path) == 3072
    assert not begin_peak(tmp_path / "none")


def test_files_leave_the_page_cache_and_it_is_told(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(os.urandom(1 << 20))
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    file.read_bytes()
    before = cached_share([file])
    if before is None:
        pytest.skip("this system does not tell")
    assert before == 1.0
    assert drop_from_cache([file]) is None
    assert cached_share([file]) in (0.0, 1.0)  # a file system in memory keeps it
    assert cached_share([]) is None


def test_a_system_that_cannot_drop_files_says_so(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert drop_from_cache([tmp_path]) == "this system has no posix_fadvise"


def test_what_other_programs_had_of_the_cores(tmp_path):
    """User, nice, system, interrupts and the host's share of all cores, less this process's own."""
    tick = os.sysconf("SC_CLK_TCK")
    fields = " ".join(str(seconds * tick) for seconds in (10, 1, 5, 900, 90, 2, 1, 3, 7, 0))
    write(tmp_path, {"proc/stat": f"cpu  {fields}\ncpu0 1 2 3\n"})
    assert read_taken(tmp_path).all_s == 22.0
    before, after = Taken(22.0, 4.0, 100.0), Taken(40.0, 14.0, 110.0)
    assert others_share(before, after, cores=2) == pytest.approx(8 / 20)
    assert others_share(before, Taken(22.0, 14.0, 110.0), cores=2) == 0.0  # counters come in ticks
    assert others_share(before, Taken(None, 14.0, 110.0)) is None
    assert read_taken(tmp_path / "none").all_s is None
    assert others_share(before, before) is None


def test_waiting_for_a_core_is_counted_over_all_threads(tmp_path):
    write(tmp_path, {"proc/self/task/1/schedstat": "100 50 3", "proc/self/task/2/schedstat": "200 10 1\n"})
    assert read_turns(tmp_path) == Turns(300, 60)
    assert waited_share(Turns(200, 0), Turns(300, 60)) == 0.375
    assert waited_share(Turns(), read_turns(tmp_path / "none")) is None
    if read_turns().ran:
        assert 0 <= waited_share(Turns(), read_turns()) <= 1
