"""A written history of one tree, and what every panel answers at its end.

Eleven samples, one every 15 s: what a watchdog and a gateway publish while one stall is recovered from. The counters of
events stand still when the last minute begins, so that `increase` has nothing to extrapolate.
"""

from __future__ import annotations

END = "2m30s"
_GPU = 'instance="n:9400", device="cuda:0", uuid="U0"'
_A = 'instance="n:9400", device="cuda:0", worker="a"'
_B = 'instance="n:9400", device="cuda:0", worker="b"'
_FUSED = 'layer="m/layers.0", path="fused", code="200"'

HISTORY = {
    # the watchdog
    'fdmoe_build_info{instance="n:9400", version="0.1.0"}': "1x10",
    'fdmoe_path_active{instance="n:9400", device="cuda:0", path="fused"}': "1x5 0x5",
    'fdmoe_path_active{instance="n:9400", device="cuda:0", path="shadow"}': "0x9 1",
    'fdmoe_path_active{instance="n:9400", device="cuda:0", path="baseline"}': "0x5 1x3 0",
    'fdmoe_path_active{instance="n:9400", device="cuda:1", path="fused"}': "1x10",
    'fdmoe_path_active{instance="m:9400", device="cuda:0", path="baseline"}': "1x10",
    'fdmoe_path_active{instance="o:9400", device="cuda:0", path="fused"}': "0x10",
    f"fdmoe_heartbeat_age_seconds{{{_A}}}": "0x9 1.5",
    f"fdmoe_heartbeat_age_seconds{{{_B}}}": "0x10",
    f"fdmoe_last_heartbeat_timestamp_seconds{{{_A}}}": "148.5x10",
    f"fdmoe_last_heartbeat_timestamp_seconds{{{_B}}}": "0x10",
    f"fdmoe_stalled_ctas{{{_A}}}": "0x9 131",
    f"fdmoe_stalled_ctas{{{_B}}}": "0x10",
    f'fdmoe_worker_state{{{_A}, state="ready"}}': "1x9 0",
    f'fdmoe_worker_state{{{_A}, state="dying"}}': "0x9 1",
    f'fdmoe_worker_state{{{_B}, state="ready"}}': "1x10",
    f"fdmoe_worker_generation{{{_A}}}": "1x9 2",
    f"fdmoe_worker_generation{{{_B}}}": "1x10",
    'fdmoe_restart_budget_remaining{instance="n:9400", device="cuda:0"}': "10x9 9",
    'fdmoe_device_work_items_total{instance="n:9400", device="cuda:0", phase="up"}': "0+1500x10",
    'fdmoe_device_work_items_total{instance="n:9400", device="cuda:0", phase="down"}': "0+750x10",
    'fdmoe_path_switches_total{instance="n:9400", from="fused", to="baseline", reason="stall"}': "0x6 2x3",
    'fdmoe_path_switches_total{instance="n:9400", from="shadow", to="fused", reason="proven"}': "0x10",
    # `frozen` was born within the minute, `startup` before it
    'fdmoe_stalls_total{cause="stall"}': "0x6 2x3",
    'fdmoe_stalls_total{cause="frozen"}': "_x7 1 3 3",
    'fdmoe_stalls_total{cause="startup"}': "_x1 4x8",
    'fdmoe_stall_detection_seconds_bucket{cause="stall", le="0.1"}': "0x6 2x3",
    'fdmoe_stall_detection_seconds_bucket{cause="stall", le="+Inf"}': "0x6 3x3",
    'fdmoe_stall_detection_seconds_bucket{cause="frozen", le="+Inf"}': "0x6 5x3",
    'fdmoe_recovery_seconds_bucket{rung="abort", le="0.1"}': "0x6 4x3",
    'fdmoe_recovery_seconds_bucket{rung="abort", le="0.2"}': "0x6 4x3",
    'fdmoe_recovery_seconds_bucket{rung="abort", le="+Inf"}': "0x6 4x3",
    'fdmoe_recovery_seconds_count{rung="abort"}': "0x6 4x3",
    'fdmoe_abort_drill_seconds_bucket{le="0.001"}': "0x6 2x3",
    'fdmoe_abort_drill_seconds_bucket{le="+Inf"}': "0x6 2x3",
    'fdmoe_recovery_failures_total{rung="restart"}': "0x6 1x3",
    'fdmoe_aborts_total{result="ended"}': "0x6 2x3",
    'fdmoe_aborts_total{result="timed_out"}': "0x6 1x3",
    'fdmoe_worker_restarts_total{reason="stall"}': "0x6 4x3",
    'fdmoe_process_ends_total{process="gateway"}': "0x6 1x3",
    'fdmoe_process_ends_total{process="weights"}': "0x10",
    "fdmoe_flight_records_total": "0x6 3x3",
    'fdmoe_grafana_annotations_total{result="sent"}': "0x6 5x3",
    'fdmoe_grafana_annotations_total{result="failed"}': "0x6 1x3",
    'fdmoe_grafana_annotations_total{result="dropped"}': "0x10",
    'fdmoe_shadow_checks_total{result="ok"}': "0x6 3x3",
    'fdmoe_shadow_checks_total{result="mismatch"}': "0x6 1x3",
    'fdmoe_shadow_relative_error_bucket{le="0.001"}': "0x6 3x3",
    'fdmoe_shadow_relative_error_bucket{le="+Inf"}': "0x6 4x3",
    # of 100 launches a second 50 take less than 20 us, all less than 40 us
    'fdmoe_layer_duration_seconds_bucket{path="fused", bucket="8", le="0.00002"}': "0+750x10",
    'fdmoe_layer_duration_seconds_bucket{path="fused", bucket="8", le="0.00004"}': "0+1500x10",
    'fdmoe_layer_duration_seconds_bucket{path="fused", bucket="8", le="+Inf"}': "0+1500x10",
    'fdmoe_layer_duration_seconds_count{path="fused", bucket="8"}': "0+1500x10",
    # 200 turns a second: 100 less than 1 ms late, 196 less than 100 ms
    'fdmoe_watchdog_loop_lag_seconds_bucket{instance="n:9400", le="0.001"}': "0+1500x10",
    'fdmoe_watchdog_loop_lag_seconds_bucket{instance="n:9400", le="0.1"}': "0+2940x10",
    'fdmoe_watchdog_loop_lag_seconds_bucket{instance="n:9400", le="0.2"}': "0+3000x10",
    'fdmoe_watchdog_loop_lag_seconds_bucket{instance="n:9400", le="+Inf"}': "0+3000x10",
    'instance:fdmoe_watchdog_late_turns:rate5m{instance="n:9400"}': "0.02x10",
    # the gateway
    f"fdmoe_request_duration_seconds_count{{{_FUSED}}}": "0+30x10",
    'fdmoe_request_duration_seconds_count{layer="m/layers.1", path="fused", code="200"}': "0+15x10",
    'fdmoe_request_duration_seconds_count{layer="m/layers.0", path="baseline", code="503"}': "0+15x10",
    # of 100 a second 90 lie below 1 ms, 98 below 2 ms, all below 4 ms
    f'fdmoe_request_duration_seconds_bucket{{{_FUSED}, le="0.001"}}': "0+1350x10",
    f'fdmoe_request_duration_seconds_bucket{{{_FUSED}, le="0.002"}}': "0+1470x10",
    f'fdmoe_request_duration_seconds_bucket{{{_FUSED}, le="0.004"}}': "0+1500x10",
    f'fdmoe_request_duration_seconds_bucket{{{_FUSED}, le="+Inf"}}': "0+1500x10",
    'fdmoe_request_tokens_total{layer="m/layers.0", path="fused"}': "0+150x10",
    'fdmoe_request_tokens_total{layer="m/layers.1", path="baseline"}': "0+45x10",
    'fdmoe_requests_in_flight{instance="n:8080"}': "3x10",
    'fdmoe_queue_depth{instance="n:8080"}': "7x10",
    'fdmoe_arena_used_bytes{instance="n:8080"}': "4096x10",
    'fdmoe_batch_tokens_bucket{le="8"}': "0+15x10",
    'fdmoe_batch_tokens_bucket{le="+Inf"}': "0+30x10",
    'fdmoe_refused_requests_total{instance="n:8080", reason="queue_tokens"}': "0x6 5x3",
    'fdmoe_refused_requests_total{instance="n:8080", reason="arena"}': "0x10",
    'fdmoe_replayed_requests_total{instance="n:8080"}': "0x6 8x3",
    # what the recording rules made of another week: one request in 2000 failed, one answer in 50 was late
    'instance:fdmoe_requests:rate5m{job="fdmoe"}': "8x10",
    'instance:fdmoe_request_errors:rate5m{job="fdmoe"}': "0.004x10",
    'instance:fdmoe_requests_answered:rate5m{job="fdmoe"}': "8x10",
    'instance:fdmoe_requests_slow:rate5m{job="fdmoe"}': "0.16x10",
    'instance:fdmoe_requests:rate1h{job="fdmoe"}': "8x10",
    'instance:fdmoe_request_errors:rate1h{job="fdmoe"}': "0.016x10",
    'instance:fdmoe_requests_answered:rate1h{job="fdmoe"}': "8x10",
    'instance:fdmoe_requests_slow:rate1h{job="fdmoe"}': "0.32x10",
    'instance:fdmoe_requests:rate6h{job="fdmoe"}': "8x10",
    'instance:fdmoe_request_errors:rate6h{job="fdmoe"}': "0.008x10",
    'instance:fdmoe_requests_answered:rate6h{job="fdmoe"}': "8x10",
    'instance:fdmoe_requests_slow:rate6h{job="fdmoe"}': "0.08x10",
    'ALERTS{alertname="FdmoeHeartbeatStale", alertstate="firing", severity="critical"}': "1x10",
    'ALERTS{alertname="FdmoeNoStandby", alertstate="pending", severity="warning"}': "1x10",
    'ALERTS{alertname="DiskFull", alertstate="firing", severity="critical"}': "1x10",
    # the experts
    'fdmoe_expert_imbalance_ratio{instance="n:9400", layer="m/layers.0"}': "1.5x10",
    'fdmoe_expert_tokens_total{instance="n:9400", layer="m/layers.0", expert="2"}': "0+150x10",
    'fdmoe_expert_tokens_total{instance="n:9400", layer="m/layers.0", expert="10"}': "0+75x10",
    'fdmoe_expert_tokens_total{instance="n:9400", layer="m/layers.1", expert="127"}': "0+15x10",
    'fdmoe_comm_bytes_total{instance="n:9400", peer="local"}': "0+3840x10",
    # the GPU
    'fdmoe_gpu_collector_success{instance="n:9400", device="cuda:0"}': "1x10",
    'fdmoe_gpu_xids_watched{instance="n:9400", device="cuda:0"}': "1x10",
    f'fdmoe_gpu_info{{{_GPU}, name="NVIDIA H200", source="nvml"}}': "1x10",
    f"fdmoe_gpu_utilization_ratio{{{_GPU}}}": "0.9x10",
    f"fdmoe_gpu_sm_activity_ratio{{{_GPU}}}": "0.97x10",
    f"fdmoe_gpu_sm_occupancy_ratio{{{_GPU}}}": "0.06x10",
    f"fdmoe_gpu_tensor_activity_ratio{{{_GPU}}}": "0.3x10",
    f"fdmoe_gpu_dram_bandwidth_ratio{{{_GPU}}}": "0.77x10",
    f"fdmoe_gpu_compute_processes{{{_GPU}}}": "3x10",
    f"fdmoe_gpu_memory_used_bytes{{{_GPU}}}": "1024x10",
    f"fdmoe_gpu_memory_free_bytes{{{_GPU}}}": "3072x10",
    f"fdmoe_gpu_memory_total_bytes{{{_GPU}}}": "4608x10",
    f"fdmoe_gpu_power_watts{{{_GPU}}}": "139x10",
    f"fdmoe_gpu_energy_joules_total{{{_GPU}}}": "0+2100x10",
    f"fdmoe_gpu_temperature_celsius{{{_GPU}}}": "41x10",
    f"fdmoe_gpu_sm_clock_hertz{{{_GPU}}}": "1.98e+09x10",
    f"fdmoe_gpu_memory_clock_hertz{{{_GPU}}}": "3.2e+09x10",
    f'fdmoe_gpu_throttled{{{_GPU}, reason="sw_power_cap"}}': "1x10",
    f'fdmoe_gpu_throttled{{{_GPU}, reason="gpu_idle"}}': "0x10",
    f'fdmoe_gpu_pcie_bytes_per_second{{{_GPU}, direction="received"}}': "11x10",
    f'fdmoe_gpu_pcie_bytes_per_second{{{_GPU}, direction="transmitted"}}': "12x10",
    f'fdmoe_gpu_nvlink_bytes_per_second{{{_GPU}, direction="received"}}': "13x10",
    f'fdmoe_gpu_nvlink_bytes_per_second{{{_GPU}, direction="transmitted"}}': "14x10",
    f'fdmoe_gpu_nvlink_bytes_total{{{_GPU}, direction="received"}}': "0+150x10",
    f'fdmoe_gpu_nvlink_bytes_total{{{_GPU}, direction="transmitted"}}': "0+300x10",
    'fdmoe_gpu_xid_total{instance="n:9400", device="cuda:0", xid="79"}': "0x6 1x3",
    'fdmoe_gpu_xid_total{instance="n:9400", device="cuda:0", xid="other"}': "0x10",
    'fdmoe_gpu_xid_last_timestamp_seconds{instance="n:9400", device="cuda:0"}': "105x10",
    f'fdmoe_gpu_recovery_action{{{_GPU}, action="none"}}': "1x6 0x3",
    f'fdmoe_gpu_recovery_action{{{_GPU}, action="reset_gpu"}}': "0x6 1x3",
    f'fdmoe_gpu_ecc_errors_total{{{_GPU}, error="corrected"}}': "0x6 2x3",
    f'fdmoe_gpu_ecc_errors_total{{{_GPU}, error="uncorrected"}}': "0x10",
    f'fdmoe_gpu_remapped_rows{{{_GPU}, error="corrected"}}': "8x10",
    f'fdmoe_gpu_remapped_rows{{{_GPU}, error="uncorrected"}}': "9x10",
    f"fdmoe_gpu_remapped_rows_pending{{{_GPU}}}": "1x10",
    f"fdmoe_gpu_retired_pages_pending{{{_GPU}}}": "0x10",
    f"fdmoe_gpu_row_remapping_failed{{{_GPU}}}": "0x10",
}

# by dashboard and panel: for each of its queries the value of each series
ANSWERS: dict[str, dict[str, list[dict[str, float]]]] = {
    "fdmoe-service": {
        "Path now": [
            {
                '{device="cuda:0", instance="m:9400"}': 3,
                '{device="cuda:0", instance="n:9400"}': 2,
                '{device="cuda:0", instance="o:9400"}': 0,
                '{device="cuda:1", instance="n:9400"}': 1,
            }
        ],
        "Path": [
            {
                '{device="cuda:0", instance="m:9400"}': 3,
                '{device="cuda:0", instance="n:9400"}': 2,
                '{device="cuda:0", instance="o:9400"}': 0,
                '{device="cuda:1", instance="n:9400"}': 1,
            }
        ],
        "Alerts firing": [{"{}": 1}],
        "Availability: budget left": [{'{job="fdmoe"}': 0.5}],
        "Availability: burn rate": [{'{job="fdmoe"}': 2}, {'{job="fdmoe"}': 1}],
        "Latency: budget left": [{'{job="fdmoe"}': -1}],
        "Latency: burn rate": [{'{job="fdmoe"}': 4}, {'{job="fdmoe"}': 1}],
        "Requests by path": [{'{path="baseline"}': 1, '{path="fused"}': 3}],
        "Latency by path": [{'{path="fused"}': 0.0005555555555555556}, {'{path="fused"}': 0.003}],
        "Refused or failed, by code": [{'{code="503"}': 1}],
        "Latency": [{'{le="+Inf"}': 6000, '{le="0.001"}': 5400, '{le="0.002"}': 5880, '{le="0.004"}': 6000}],
        "Tokens by layer and path": [
            {'{layer="m/layers.0", path="fused"}': 10, '{layer="m/layers.1", path="baseline"}': 3}
        ],
        "In flight and queued": [{'{instance="n:8080"}': 3}, {'{instance="n:8080"}': 7}],
        "Arena in use": [{'{instance="n:8080"}': 4096}],
        "Tokens of a batch": [{'{le="+Inf"}': 120, '{le="8"}': 60}],
        "Turned away, by reason": [{'{reason="arena"}': 0, '{reason="queue_tokens"}': 5}],
        "Replayed requests": [{"{}": 8}],
    },
    "fdmoe-kernel": {
        "Heartbeat age": [
            {
                '{device="cuda:0", instance="n:9400", worker="a"}': 1.5,
                '{device="cuda:0", instance="n:9400", worker="b"}': 0,
            }
        ],
        "Time since the last beat": [{'{device="cuda:0", instance="n:9400", worker="a"}': 1.5}],
        "Stalled CTAs": [
            {
                '{device="cuda:0", instance="n:9400", worker="a"}': 131,
                '{device="cuda:0", instance="n:9400", worker="b"}': 0,
            }
        ],
        "Worker states": [
            {
                '{device="cuda:0", instance="n:9400", state="dying", worker="a"}': 1,
                '{device="cuda:0", instance="n:9400", state="ready", worker="b"}': 1,
            }
        ],
        "Starts of workers": [
            {
                '{device="cuda:0", instance="n:9400", worker="a"}': 2,
                '{device="cuda:0", instance="n:9400", worker="b"}': 1,
            }
        ],
        "Restarts left": [{'{device="cuda:0", instance="n:9400"}': 9}],
        "Utilisation and progress": [
            {'{device="cuda:0", instance="n:9400"}': 0.9},
            {'{device="cuda:0", instance="n:9400"}': 150},
        ],
        "Divergence": [{'{device="cuda:0", instance="n:9400"}': 0.006}],
        "Work items by phase": [{'{phase="down"}': 50, '{phase="up"}': 100}],
        "What the SMs do": [
            {'{device="cuda:0", instance="n:9400"}': 0.97},
            {'{device="cuda:0", instance="n:9400"}': 0.3},
            {'{device="cuda:0", instance="n:9400"}': 0.77},
        ],
        "Stalls": [{'{cause="frozen"}': 3, '{cause="stall"}': 2, '{cause="startup"}': 0}],
        "Time to detection": [{'{le="+Inf"}': 3, '{le="0.1"}': 2}],
        "Recovery time by rung, last hour": [{'{rung="abort"}': 0.09900000000000002}, {"{}": 0.0009900000000000002}],
        "Rungs taken": [{'{rung="abort"}': 4}],
        "Rungs that failed": [{'{rung="restart"}': 1}],
        "Aborts": [{'{result="ended"}': 2, '{result="timed_out"}': 1}],
        "Worker restarts": [{'{reason="stall"}': 4}],
        "Ends of other processes": [{'{process="gateway"}': 1, '{process="weights"}': 0}],
        "Path switches": [
            {'{from="fused", reason="stall", to="baseline"}': 2, '{from="shadow", reason="proven", to="fused"}': 0}
        ],
        "Flight records": [{"{}": 3}],
        "Comparisons": [{'{result="mismatch"}': 1, '{result="ok"}': 3}],
        "Relative error": [{'{le="+Inf"}': 4, '{le="0.001"}': 3}],
        "Layer time, median": [{'{bucket="8", path="fused"}': 2e-05}],
        "Layer time, 99th percentile": [{'{bucket="8", path="fused"}': 3.96e-05}],
        "Launches by path and bucket": [{'{bucket="8", path="fused"}': 100}],
        "Lag of the watchdog's loop": [{'{instance="n:9400"}': 0.001}, {'{instance="n:9400"}': 0.15000000000000002}],
        "Turns that came too late": [{'{instance="n:9400"}': 0.02}],
        "Annotations for Grafana": [{'{result="dropped"}': 0, '{result="failed"}': 1, '{result="sent"}': 5}],
        "Version": [{'{instance="n:9400", version="0.1.0"}': 1}],
    },
    "fdmoe-gpu": {
        "Readable": [{'{device="cuda:0", instance="n:9400"}': 1}],
        "Xids watched": [{'{device="cuda:0", instance="n:9400"}': 1}],
        "GPUs": [{'{device="cuda:0", instance="n:9400", name="NVIDIA H200", source="nvml", uuid="U0"}': 1}],
        "Utilisation": [{'{device="cuda:0", instance="n:9400", uuid="U0"}': 0.9}],
        "SM activity": [{'{device="cuda:0", instance="n:9400", uuid="U0"}': 0.97}],
        "SM occupancy": [{'{device="cuda:0", instance="n:9400", uuid="U0"}': 0.06}],
        "Tensor cores": [{'{device="cuda:0", instance="n:9400", uuid="U0"}': 0.3}],
        "DRAM": [{'{device="cuda:0", instance="n:9400", uuid="U0"}': 0.77}],
        "Processes": [{'{device="cuda:0", instance="n:9400", uuid="U0"}': 3}],
        "Memory used": [
            {'{device="cuda:0", instance="n:9400", uuid="U0"}': 1024},
            {'{device="cuda:0", instance="n:9400", uuid="U0"}': 4608},
        ],
        "Memory free": [{'{device="cuda:0", instance="n:9400", uuid="U0"}': 3072}],
        "Power": [{'{device="cuda:0", instance="n:9400", uuid="U0"}': 139}],
        "Power by energy": [{'{device="cuda:0", instance="n:9400", uuid="U0"}': 140}],
        "Temperature": [{'{device="cuda:0", instance="n:9400", uuid="U0"}': 41}],
        "Clocks": [
            {'{device="cuda:0", instance="n:9400", uuid="U0"}': 1980000000},
            {'{device="cuda:0", instance="n:9400", uuid="U0"}': 3200000000},
        ],
        "Throttled": [{'{device="cuda:0", instance="n:9400", reason="sw_power_cap", uuid="U0"}': 1}],
        "PCIe": [
            {
                '{device="cuda:0", direction="received", instance="n:9400", uuid="U0"}': 11,
                '{device="cuda:0", direction="transmitted", instance="n:9400", uuid="U0"}': 12,
            }
        ],
        "NVLink": [
            {
                '{device="cuda:0", direction="received", instance="n:9400", uuid="U0"}': 13,
                '{device="cuda:0", direction="transmitted", instance="n:9400", uuid="U0"}': 14,
            }
        ],
        "NVLink by counter": [
            {
                '{device="cuda:0", direction="received", instance="n:9400", uuid="U0"}': 10,
                '{device="cuda:0", direction="transmitted", instance="n:9400", uuid="U0"}': 20,
            }
        ],
        "Xids": [{'{device="cuda:0", xid="79"}': 1, '{device="cuda:0", xid="other"}': 0}],
        "Last Xid": [{'{device="cuda:0", instance="n:9400"}': 105000}],
        "Recovery action": [{'{action="reset_gpu", device="cuda:0", instance="n:9400", uuid="U0"}': 1}],
        "ECC errors": [{'{device="cuda:0", error="corrected"}': 2, '{device="cuda:0", error="uncorrected"}': 0}],
        "Remapped rows": [
            {
                '{device="cuda:0", error="corrected", instance="n:9400", uuid="U0"}': 8,
                '{device="cuda:0", error="uncorrected", instance="n:9400", uuid="U0"}': 9,
            }
        ],
        "Memory waits for a reset": [
            {
                '{device="cuda:0", instance="n:9400", uuid="U0", what="pages"}': 0,
                '{device="cuda:0", instance="n:9400", uuid="U0", what="remapping failed"}': 0,
                '{device="cuda:0", instance="n:9400", uuid="U0", what="rows"}': 1,
            }
        ],
    },
    "fdmoe-experts": {
        "Imbalance": [{'{instance="n:9400", layer="m/layers.0"}': 1.5}],
        "Busiest experts": [
            {
                '{expert="10", layer="m/layers.0"}': 5,
                '{expert="127", layer="m/layers.1"}': 1,
                '{expert="2", layer="m/layers.0"}': 10,
            }
        ],
        "Load over experts": [{'{expert="002"}': 10, '{expert="010"}': 5, '{expert="127"}': 1}],
        "Routed tokens by layer": [{'{layer="m/layers.0"}': 15, '{layer="m/layers.1"}': 1}],
        "Bytes moved": [{'{peer="local"}': 256}],
        "Bytes for a routed token": [{'{instance="n:9400"}': 16}],
    },
}
