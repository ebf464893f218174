{{- define "gatepass.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "gatepass.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "gatepass.labels" -}}
{{ include "gatepass.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "gatepass.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "gatepass.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "gatepass.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "gatepass.claim" -}}
{{- .Values.persistence.existingClaim | default (include "gatepass.fullname" .) -}}
{{- end -}}

{{- define "gatepass.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "gatepass.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Beside that of publicUrl: what pods of the cluster call the Service, and what is asked for. */ -}}
{{- define "gatepass.hosts" -}}
{{- $name := include "gatepass.fullname" . -}}
{{- $hosts := list $name (printf "%s.%s" $name .Release.Namespace) -}}
{{- $hosts = append $hosts (printf "%s.%s.svc" $name .Release.Namespace) -}}
{{- $hosts = append $hosts (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) -}}
{{- $hosts = append $hosts .Values.ingress.host -}}
{{- $hosts = append $hosts (get .Values.settings "GATEPASS_ALLOWED_HOSTS") -}}
{{- compact $hosts | join "," -}}
{{- end -}}

{{- /* What every process of the chart runs with; the Job that migrates needs no more. */ -}}
{{- define "gatepass.env" -}}
- name: GATEPASS_LISTEN
  value: 0.0.0.0:8080
- name: GATEPASS_PUBLIC_URL
  value: {{ .Values.publicUrl | quote }}
- name: GATEPASS_ALLOWED_HOSTS
  value: {{ include "gatepass.hosts" . | quote }}
- name: GATEPASS_DATA_DIR
  value: /data
{{- if eq .Values.database.kind "postgresql" }}
- name: GATEPASS_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.existingSecret }}
      key: {{ .Values.database.secretKey }}
{{- end }}
{{- if .Values.keys.existingSecret }}
- name: GATEPASS_MASTER_KEY_FILE
  value: /data/master.key
- name: GATEPASS_SIGNING_KEY_FILE
  value: /data/signing.key
{{- end }}
{{- range $name, $value := omit .Values.settings "GATEPASS_ALLOWED_HOSTS" }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- /* Each key is a read-only file on the writable data volume: the signer keeps the last head that
       it signed beside its key, and could not do so on a volume made of the Secret. */ -}}
{{- define "gatepass.keyMount" -}}
{{- if .Values.keys.existingSecret }}
- name: keys
  mountPath: /data/master.key
  subPath: master.key
  readOnly: true
- name: keys
  mountPath: /data/signing.key
  subPath: signing.key
  readOnly: true
{{- end }}
{{- end -}}

{{- define "gatepass.keyVolume" -}}
{{- if .Values.keys.existingSecret }}
- name: keys
  secret:
    secretName: {{ .Values.keys.existingSecret }}
    defaultMode: 0440
    items:
      - key: {{ .Values.keys.masterKey }}
        path: master.key
      - key: {{ .Values.keys.signingKey }}
        path: signing.key
{{- end }}
{{- end -}}

{{- /* How the gateway signs in to OpenBao or HashiCorp Vault. */}}
{{- define "gatepass.vaultEnv" -}}
{{- with .Values.vault }}
{{- if .address }}
- name: GATEPASS_VAULT_ADDR
  value: {{ .address | quote }}
- name: GATEPASS_VAULT_AUTH
  value: {{ .auth }}
{{- with .mount }}
- name: GATEPASS_VAULT_MOUNT
  value: {{ . | quote }}
{{- end }}
{{- with .namespace }}
- name: GATEPASS_VAULT_NAMESPACE
  value: {{ . | quote }}
{{- end }}
{{- if eq .auth "kubernetes" }}
- name: GATEPASS_VAULT_ROLE
  value: {{ .role | quote }}
- name: GATEPASS_VAULT_JWT_FILE
  value: /run/gatepass/vault/jwt
{{- else if eq .auth "approle" }}
- name: GATEPASS_VAULT_ROLE_ID
  value: {{ .roleId | quote }}
- name: GATEPASS_VAULT_SECRET_ID_FILE
  value: /run/gatepass/vault/value
{{- else }}
- name: GATEPASS_VAULT_TOKEN_FILE
  value: /run/gatepass/vault/value
{{- end }}
{{- if .caConfigMap }}
- name: GATEPASS_VAULT_CA_FILE
  value: /run/gatepass/vault/ca.crt
{{- end }}
{{- end }}
{{- end }}
{{- end }}
