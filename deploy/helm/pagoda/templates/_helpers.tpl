{{- define "pagoda.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "pagoda.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pagoda.labels" -}}
{{ include "pagoda.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "pagoda.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "pagoda.claim" -}}
{{- if .Values.cache.existingClaim }}{{ .Values.cache.existingClaim }}{{ else if .Values.cache.size }}{{ include "pagoda.name" . }}-models{{ end -}}
{{- end }}

{{- /* What the server and the container that fetches the model have in common. */ -}}
{{- define "pagoda.container" -}}
image: {{ include "pagoda.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
volumeMounts:
  - {name: models, mountPath: /models}
  - {name: tmp, mountPath: /tmp}
  - {name: settings, mountPath: /etc/pagoda, readOnly: true}
{{- end }}
