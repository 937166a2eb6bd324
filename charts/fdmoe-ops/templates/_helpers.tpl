{{- define "fdmoe-ops.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The release's name, with the chart's behind it unless it is in it: at most 63 characters, as names in DNS. */}}
{{- define "fdmoe-ops.fullname" -}}
{{- $name := include "fdmoe-ops.name" . -}}
{{- $default := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $default .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "fdmoe-ops.selectorLabels" -}}
app.kubernetes.io/name: {{ include "fdmoe-ops.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fdmoe-ops.labels" -}}
{{ include "fdmoe-ops.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "fdmoe-ops.serviceAccountName" -}}
{{- $default := ternary (include "fdmoe-ops.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $default .Values.serviceAccount.name -}}
{{- end -}}

{{- define "fdmoe-ops.hasModelVolume" -}}
{{- if and .Values.model.existingClaim .Values.model.hostPath -}}
{{- fail "model.existingClaim and model.hostPath are both set; the model is in one volume" -}}
{{- end -}}
{{- if or .Values.model.existingClaim .Values.model.hostPath -}}true{{- end -}}
{{- end -}}

{{- define "fdmoe-ops.hasGrafana" -}}
{{- $url := dig "grafana" "url" "" .Values.settings -}}
{{- if and $url (not .Values.grafana.tokenSecret) -}}
{{- fail "settings.grafana.url is set and grafana.tokenSecret is not; name the Secret with the token" -}}
{{- end -}}
{{- if and .Values.grafana.tokenSecret (not $url) -}}
{{- fail "grafana.tokenSecret is set and settings.grafana.url is not; give the address of the Grafana" -}}
{{- end -}}
{{- if $url -}}true{{- end -}}
{{- end -}}

{{/*
The settings file: the values' settings, and what only the chart knows. The devices are never "auto": a pod without its
GPU must fail and not fall back to the interpreter; "all" are those that the pod was given. These ports are the
container's; the service has its own.
*/}}
{{- define "fdmoe-ops.settings" -}}
{{- $settings := deepCopy .Values.settings -}}
{{- $own := dict
  "devices" (ternary "cpu" "all" (eq (int .Values.gpu.count) 0))
  "gateway" (dict "host" "0.0.0.0" "port" 8080)
  "watchdog" (dict "host" "0.0.0.0" "port" 9400)
  "run_dir" "/dev/shm/fdmoe"
  "flight_dir" "/var/lib/fdmoe/flights"
-}}
{{- if include "fdmoe-ops.hasModelVolume" . -}}
{{- $path := printf "/models/%s" (.Values.model.directory | trimAll "/") | trimSuffix "/" -}}
{{- $_ := set $own "model" (dict "path" $path) -}}
{{- end -}}
{{- if include "fdmoe-ops.hasGrafana" . -}}
{{- $_ := set $own "grafana" (dict "token_file" "/etc/fdmoe-grafana/token") -}}
{{- end -}}
{{- mergeOverwrite $settings $own | toYaml -}}
{{- end -}}

{{/* The limits, the GPU among them: Kubernetes takes its request from there. */}}
{{- define "fdmoe-ops.limits" -}}
{{- $limits := deepCopy .Values.resources.limits -}}
{{- if .Values.gpu.count -}}
{{- $_ := set $limits .Values.gpu.resourceName (int .Values.gpu.count) -}}
{{- end -}}
{{- toYaml $limits -}}
{{- end -}}
