#Requires -Version 7.4
#Requires -RunAsAdministrator
<#
A mounted image as programs of Windows see it. Makes a volume on a virtual disk, images it, mounts the image
at a letter, and holds everything against the volume. Leaves nothing behind, also where it fails.
#>
param([string]$Mechanism = 'auto')

. "$PSScriptRoot\common.ps1"

function Assert-Refused([string]$What, [scriptblock]$Attempt) {
    try {
        & $Attempt | Out-Null
    }
    catch {
        Write-Host "refused: $What ($($_.Exception.Message))"
        return
    }
    throw "not refused: $What"
}

$work = Join-Path ([IO.Path]::GetTempPath()) "imagefs smoke $PID"
$vhd = "$work\source.vhdx"
$isMounted = $false
New-Item -ItemType Directory $work, "$work\set" | Out-Null
try {
    Write-Step 'a volume, and its image'
    Add-Volume (New-Vhd $vhd 2048) 'S' 'Source'
    Add-Files 'S:'
    $wanted = Get-Hashes 'S:'
    Invoke-Imagefs disks
    Invoke-Imagefs backup 'S:' "$work\set"
    Invoke-Imagefs verify "$work\set"
    $image = Find-Image "$work\set"
    $volume = Find-Volume $image
    Invoke-Imagefs info $image

    Write-Step 'mounting'
    Invoke-Imagefs mount --mechanism $Mechanism --volume $volume --letter 'R:' $image
    $isMounted = $true
    Assert-True (Test-Path -LiteralPath 'R:\marker.txt') 'the drive shows nothing'
    & cmd.exe /d /c 'dir /s /a R:\' | Select-Object -Last 3 | Out-Host
    Assert-True ($LASTEXITCODE -eq 0) 'dir /s failed'
    Assert-SameHashes $wanted (Get-Hashes 'R:') 'the mounted volume'

    Write-Step 'fc /b, with what cat and cp give'
    & imagefs.exe cat $image "$volume/big.bin" > "$work\cat.bin"
    Assert-True ($LASTEXITCODE -eq 0) 'cat failed'
    Invoke-Imagefs cp $image "$volume/big.bin" "$work\cp.bin"
    foreach ($copy in 'cat.bin', 'cp.bin') {
        & fc.exe /b 'R:\big.bin' "$work\$copy" | Out-Host
        Assert-True ($LASTEXITCODE -eq 0) "$copy is not what is mounted"
    }

    Write-Step 'robocopy'
    $options = '/E', '/XJ', '/COPY:DAT', '/DCOPY:DAT', '/R:0', '/W:0', '/NP', '/NFL', '/NDL', '/XD',
        'System Volume Information', '$RECYCLE.BIN'
    & robocopy.exe 'R:\' "$work\listed" /L @options | Out-Host
    Assert-True ($LASTEXITCODE -lt 8) "robocopy /L ended with $LASTEXITCODE"
    Assert-True (-not (Test-Path -LiteralPath "$work\listed")) 'robocopy /L made something'
    & robocopy.exe 'R:\' "$work\robocopy" @options | Out-Host
    Assert-True ($LASTEXITCODE -lt 8) "robocopy ended with $LASTEXITCODE"
    Assert-SameHashes $wanted (Get-Hashes "$work\robocopy") 'what robocopy copied'
    $kept = Get-Kept 'S:\hidden.txt'
    Assert-True ((Get-Kept "$work\robocopy\hidden.txt") -eq $kept) 'times and attributes after robocopy'

    Write-Step 'icacls'
    & icacls.exe 'R:\marker.txt' 'R:\many' | Out-Host
    Assert-True ($LASTEXITCODE -eq 0) 'icacls failed'

    Write-Step 'attempts to write'
    Assert-Refused 'writing to a file' { [IO.File]::WriteAllText('R:\marker.txt', 'x') }
    Assert-Refused 'appending to a file' { [IO.File]::AppendAllText('R:\marker.txt', 'x') }
    Assert-Refused 'opening for writing' { [IO.File]::Open('R:\marker.txt', 'Open', 'Write').Close() }
    Assert-Refused 'cutting a file' { [IO.File]::Open('R:\marker.txt', 'Truncate').Close() }
    Assert-Refused 'making a file' { [IO.File]::WriteAllText('R:\new.txt', 'x') }
    Assert-Refused 'making a folder' { New-Item -ItemType Directory 'R:\new' }
    Assert-Refused 'renaming a file' { Rename-Item -LiteralPath 'R:\marker.txt' 'new.txt' }
    Assert-Refused 'moving a file' { [IO.File]::Move('R:\marker.txt', 'R:\many\marker.txt') }
    Assert-Refused 'renaming a folder' { Rename-Item -LiteralPath 'R:\many' 'new' }
    Assert-Refused 'deleting a file' { [IO.File]::Delete('R:\marker.txt') }
    Assert-Refused 'deleting a folder' { [IO.Directory]::Delete('R:\empty') }
    Assert-Refused 'changing attributes' { [IO.File]::SetAttributes('R:\marker.txt', 'Hidden') }
    Assert-Refused 'changing a time' { [IO.File]::SetLastWriteTimeUtc('R:\marker.txt', [DateTime]::UtcNow) }
    & icacls.exe 'R:\marker.txt' /grant '*S-1-1-0:(F)' | Out-Host
    Assert-True ($LASTEXITCODE -ne 0) 'rights could be changed'
    Assert-SameHashes $wanted (Get-Hashes 'R:') 'the mounted volume, after all that'

    Write-Step '8 readers at once'
    $sums = 1..8 | ForEach-Object -ThrottleLimit 8 -Parallel {
        $own = $using:Own
        Get-ChildItem -LiteralPath 'R:\' -Recurse -Force -Attributes $using:Files -ErrorAction SilentlyContinue |
            Where-Object FullName -NotMatch $own |
            Sort-Object FullName |
            ForEach-Object { (Get-FileHash -LiteralPath $_.FullName).Hash } |
            Join-String -Separator ' '
    }
    Assert-True (@($sums).Count -eq 8) 'a reader failed'
    Assert-True (@($sums | Sort-Object -Unique).Count -eq 1) 'readers saw different bytes'
    $seen = ($sums[0] -split ' ' | Sort-Object) -join ' '
    Assert-True ($seen -eq (($wanted.Values | Sort-Object) -join ' ')) 'all readers saw wrong bytes'

    Write-Step 'unmounting'
    Invoke-Imagefs umount 'R:'
    $isMounted = $false
    Assert-True (-not (Test-Path -LiteralPath 'R:\')) 'the drive is still there'

    Write-Step 'cp: long paths, streams, attributes, times, rights'
    $long = "$work\" + ((1..6 | ForEach-Object { "$_" + 'x' * 60 }) -join '\')
    New-Item -ItemType Directory $long | Out-Null
    Invoke-Imagefs cp --streams $image $volume $long
    $root = "$long\$($volume.Split('/')[1])"
    Assert-SameHashes $wanted (Get-Hashes $root) 'what cp copied'
    Assert-True ((Get-Content -LiteralPath "$root\marker.txt" -Stream 'note') -eq 'a stream') 'the stream'
    Assert-True ((Get-Kept "$root\hidden.txt") -eq $kept) 'times and attributes after cp'
    Invoke-Imagefs cp --security --overwrite $image "$volume/secret.txt" "$volume/deep" $root
    foreach ($name in 'secret.txt', 'deep\er\and\deeper\file.bin') {
        $rights = "S:\$name", "$root\$name" | ForEach-Object { (Get-Acl -LiteralPath $_).Sddl }
        Assert-True ($rights[0] -eq $rights[1]) "rights of $name after cp: $($rights -join ' and ')"
    }
    $sparse = [IO.File]::GetAttributes("$root\sparse.bin")
    Assert-True ($sparse.HasFlag([IO.FileAttributes]::SparseFile)) 'the copy has no holes'
}
finally {
    if ($isMounted) { & imagefs.exe umount --force 'R:' }
    Remove-Vhd $vhd
    Remove-Item -LiteralPath $work -Recurse -Force -ErrorAction Continue
}
Write-Host 'all is as it should be'
exit 0  # not that of the last program
